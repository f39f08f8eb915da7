"use strict";
// The click page: masks are painted by segments or by a brush, kept in the browser, and downloaded as a zip archive.
// A mask holds one number per pixel, row by row: a class, IGNORE for "nobody can say", or UNSAID for "not yet said",
// which the download writes as IGNORE.

const data = JSON.parse(document.getElementById("data").textContent);
const { height, width } = data;
const IGNORE = 255;
const UNSAID = 256;
const CLASS_KEYS = "0123456789qwtuoadfjcxm";
const MOST_UNDO = 500;
const HATCH_PERIOD = 4;

const $ = id => document.getElementById(id);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

// Numbers as text: runs of equal values, each as value and length of seven bits a byte, in base64.

function decodeRuns(text) {
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const values = new Uint16Array(height * width);
  let place = 0;
  const next = () => {
    let number = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = bytes[place++];
      number |= (byte & 127) << shift;
      if (byte < 128) return number;
    }
  };
  for (let start = 0; place < bytes.length; ) {
    const value = next();
    const length = next();
    values.fill(value, start, start + length);
    start += length;
  }
  return values;
}

function encodeRuns(values) {
  const letters = [];
  const put = number => {
    for (; number > 127; number >>>= 7) letters.push(String.fromCharCode((number & 127) | 128));
    letters.push(String.fromCharCode(number));
  };
  for (let start = 0, end; start < values.length; start = end) {
    for (end = start + 1; end < values.length && values[end] === values[start]; end++);
    put(values[start]);
    put(end - start);
  }
  return btoa(letters.join(""));
}

// Images and their masks

const images = data.images.map(each => {
  const picture = new Image();
  picture.src = each.image;
  picture.decode().then(draw);
  return {
    ...each, picture, mask: decodeRuns(each.mask), undo: [], redo: [], saidPixels: 0,
    hadLabels: false, segmentMaps: [], outlines: [],
  };
});
for (const image of images) image.hadLabels = image.mask.some(value => value !== UNSAID);

const state = { image: 0, chosen: Math.min(1, data.classes.length - 1), tool: "segment", level: 0, size: 3 };
const view = { scale: 1, x: 0, y: 0 };
const current = () => images[state.image];

function segmentMap() {
  const maps = current().segmentMaps;
  return (maps[state.level] ??= decodeRuns(current().segments[state.level]));
}

function outline() {
  return (current().outlines[state.level] ??= outlineOf(segmentMap()));
}

function outlineOf(map) {
  const path = new Path2D();
  const line = (differs, along, from, to) => {
    for (let place = 0, start = -1; place <= along; place++) {
      const isEdge = place < along && differs(place);
      if (isEdge && start < 0) start = place;
      if (!isEdge && start >= 0) {
        path.moveTo(...from(start));
        path.lineTo(...to(place));
        start = -1;
      }
    }
  };
  for (let y = 1; y < height; y++)
    line(x => map[y * width + x] !== map[(y - 1) * width + x], width, x => [x, y], x => [x, y]);
  for (let x = 1; x < width; x++)
    line(y => map[y * width + x] !== map[y * width + x - 1], height, y => [x, y], y => [x, y]);
  return path;
}

// What is kept in the browser

let isKept = true;
let isDownloaded = true;
const storageKey = image => `labelmill/${data.set}/${image.key}`;

function keep(image) {
  isDownloaded = false;
  try {
    localStorage.setItem(storageKey(image), JSON.stringify({ base: image.base, runs: encodeRuns(image.mask) }));
    isKept = true;
  } catch {
    isKept = false;
  }
  $("unkept").hidden = isKept;
}

// Work that was begun on other labels than the page has now is one step of undo away: neither is lost.
function restore(image) {
  let kept = null;
  try {
    kept = JSON.parse(localStorage.getItem(storageKey(image)));
  } catch {
    isKept = false;
    $("unkept").hidden = false;
  }
  if (!kept) return;
  const mask = decodeRuns(kept.runs);
  if (kept.base === image.base || !image.hadLabels) {
    image.mask = mask;
    return;
  }
  const change = changeBetween(mask, image.mask);
  if (!change.places.length) return;
  image.undo.push(change);
  say(`Image ${image.key} has labels that were imported since; undo shows what you had painted here.`);
}

function changeBetween(before, after) {
  const places = [];
  for (let place = 0; place < before.length; place++) if (before[place] !== after[place]) places.push(place);
  return { places, before: places.map(place => before[place]), after: places.map(place => after[place]) };
}

addEventListener("storage", event => {
  const image = images.find(each => storageKey(each) === event.key);
  if (!image || !event.newValue) return;
  const mask = decodeRuns(JSON.parse(event.newValue).runs);
  const change = changeBetween(image.mask, mask);
  if (!change.places.length) return;
  image.mask = mask;
  image.undo.push(change);
  image.redo = [];
  say("Another tab changed this set; undo takes it back here.");
  masksChanged(image);
});

addEventListener("beforeunload", event => {
  if (!isKept && !isDownloaded) event.preventDefault();
});

// Painting: a stroke is one step of undo, from pressing the button until releasing it

let stroke = null;

function beginStroke() {
  stroke = new Map();
}

function put(place, value) {
  const mask = current().mask;
  if (mask[place] === value || ($("protect").checked && value !== UNSAID && mask[place] !== UNSAID && !stroke.has(place)))
    return;
  if (!stroke.has(place)) stroke.set(place, mask[place]);
  mask[place] = value;
}

function endStroke() {
  const image = current();
  const places = [...stroke.keys()].filter(place => stroke.get(place) !== image.mask[place]);
  if (places.length) {
    const before = places.map(place => stroke.get(place));
    image.undo.push({ places, before, after: places.map(place => image.mask[place]) });
    if (image.undo.length > MOST_UNDO) image.undo.shift();
    image.redo = [];
    keep(image);
  }
  stroke = null;
  masksChanged(image);
}

function step(from, to, values) {
  const image = current();
  const change = image[from].pop();
  if (!change) return say(from === "undo" ? "Nothing to undo on this image." : "Nothing to redo on this image.");
  change.places.forEach((place, index) => (image.mask[place] = change[values][index]));
  image[to].push(change);
  keep(image);
  masksChanged(image);
}

const undo = () => stroke || step("undo", "redo", "before");
const redo = () => stroke || step("redo", "undo", "after");

const value = () => (state.tool === "eraser" ? UNSAID : state.chosen);

function paintSegment(x, y) {
  const map = segmentMap();
  const segment = map[y * width + x];
  for (let place = 0; place < map.length; place++) if (map[place] === segment) put(place, value());
}

function paintDisc(x, y) {
  const radius = state.size / 2;
  put(Math.floor(y) * width + Math.floor(x), value());
  for (let row = Math.max(0, Math.floor(y - radius)); row < Math.min(height, y + radius); row++)
    for (let column = Math.max(0, Math.floor(x - radius)); column < Math.min(width, x + radius); column++)
      if (Math.hypot(column + 0.5 - x, row + 0.5 - y) <= radius) put(row * width + column, value());
}

function paintAt(x, y) {
  if (x < 0 || y < 0 || x >= width || y >= height) return;
  if (state.tool === "segment") paintSegment(Math.floor(x), Math.floor(y));
  else paintDisc(x, y);
}

function paintAlong(from, to) {
  const steps = Math.max(1, Math.ceil(2 * Math.hypot(to.x - from.x, to.y - from.y)));
  for (let number = 1; number <= steps; number++)
    paintAt(from.x + ((to.x - from.x) * number) / steps, from.y + ((to.y - from.y) * number) / steps);
  tint();
  draw();
}

function fillRest() {
  if (stroke) return;
  beginStroke();
  current().mask.forEach((now, place) => now === UNSAID && put(place, state.chosen));
  const count = stroke.size;
  endStroke();
  say(count ? `${count} pixels without a label are ${nameOf(state.chosen)} now.` : "Every pixel has a label already.");
}

// Drawing

const canvas = $("canvas");
const context = canvas.getContext("2d");
const layerOf = () => Object.assign(document.createElement("canvas"), { height, width }).getContext("2d");
const tintLayer = layerOf();
const hoverLayer = layerOf();
const tintPixels = tintLayer.createImageData(width, height);
const hoverPixels = hoverLayer.createImageData(width, height);
const colours = data.classes.map(each => [1, 3, 5].map(start => parseInt(each.colour.slice(start, start + 2), 16)));
let hovered = -1;
let pointer = null;
let isDrawing = false;

function tint() {
  const mask = current().mask;
  const strength = Math.round(2.55 * Number($("strength").value));
  const pixels = tintPixels.data;
  for (let place = 0; place < mask.length; place++) {
    const label = mask[place];
    const isHatched = label === IGNORE && (Math.floor(place / width) + (place % width)) % HATCH_PERIOD === 0;
    const colour = label < colours.length ? colours[label] : isHatched ? [90, 96, 110] : [255, 255, 255];
    pixels.set(colour, 4 * place);
    pixels[4 * place + 3] = label === UNSAID ? 0 : strength;
  }
  tintLayer.putImageData(tintPixels, 0, 0);
}

function hover() {
  const isOver = state.tool === "segment" && pointer && isInside(pointer);
  const segment = isOver ? segmentMap()[Math.floor(pointer.y) * width + Math.floor(pointer.x)] : -1;
  if (segment === hovered) return;
  hovered = segment;
  if (segment < 0) return;
  const map = segmentMap();
  for (let place = 0; place < map.length; place++) hoverPixels.data.set([255, 255, 255, map[place] === segment ? 90 : 0], 4 * place);
  hoverLayer.putImageData(hoverPixels, 0, 0);
}

const isInside = ({ x, y }) => x >= 0 && y >= 0 && x < width && y < height;

function draw() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => {
    isDrawing = false;
    drawNow();
  });
}

function drawNow() {
  hover();
  const ratio = devicePixelRatio;
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.setTransform(view.scale * ratio, 0, 0, view.scale * ratio, view.x * ratio, view.y * ratio);
  context.imageSmoothingEnabled = false;
  const { picture } = current();
  if (picture.complete && picture.naturalWidth) context.drawImage(picture, 0, 0);
  if ($("labels").checked) context.drawImage(tintLayer.canvas, 0, 0);
  if (hovered >= 0) context.drawImage(hoverLayer.canvas, 0, 0);
  if ($("edges").checked) {
    drawLine(outline(), 1.8, "#0009");
    drawLine(outline(), 0.8, "#fffc");
  }
  if (pointer && isInside(pointer) && ["brush", "eraser"].includes(state.tool)) {
    const ring = new Path2D();
    ring.arc(pointer.x, pointer.y, Math.max(state.size / 2, 0.5), 0, 7);
    drawLine(ring, 3, "#000b");
    drawLine(ring, 1.4, "#fff");
  }
  if (pointer && pointer.isByKeys) {
    const cross = new Path2D(`M${pointer.x - 2} ${pointer.y}h4m-2 -2v4`);
    drawLine(cross, 4, "#000");
    drawLine(cross, 2, "#fff");
  }
}

function drawLine(path, pixels, colour) {
  context.lineWidth = pixels / view.scale;
  context.strokeStyle = colour;
  context.stroke(path);
}

function fitCanvas() {
  const box = canvas.getBoundingClientRect();
  canvas.width = Math.round(box.width * devicePixelRatio);
  canvas.height = Math.round(box.height * devicePixelRatio);
  fit();
}

function fit() {
  const box = canvas.getBoundingClientRect();
  view.scale = Math.min(box.width / width, box.height / height);
  view.x = (box.width - view.scale * width) / 2;
  view.y = (box.height - view.scale * height) / 2;
  draw();
}

function zoom(factor, x, y) {
  const box = canvas.getBoundingClientRect();
  const least = 0.5 * Math.min(box.width / width, box.height / height);
  const scale = clamp(view.scale * factor, least, 64 * least + 32);
  view.x = x - ((x - view.x) * scale) / view.scale;
  view.y = y - ((y - view.y) * scale) / view.scale;
  view.scale = scale;
  draw();
}

function zoomMiddle(factor) {
  const box = canvas.getBoundingClientRect();
  zoom(factor, box.width / 2, box.height / 2);
}

// Pointers: one paints or moves the image, two zoom

const pressed = new Map();
let last = null;
let isMoving = false;
let isSpaceDown = false;

function placeOf(event) {
  const box = canvas.getBoundingClientRect();
  return { x: (event.clientX - box.left - view.x) / view.scale, y: (event.clientY - box.top - view.y) / view.scale };
}

canvas.addEventListener("pointerdown", event => {
  if (event.button > 1) return;
  event.preventDefault();
  canvas.focus({ preventScroll: true });
  canvas.setPointerCapture(event.pointerId);
  pressed.set(event.pointerId, event);
  pointer = last = placeOf(event);
  if (pressed.size === 2) {
    if (stroke) takeBackStroke();
    return;
  }
  isMoving = event.button === 1 || isSpaceDown || state.tool === "move";
  if (isMoving || pressed.size > 1) return;
  beginStroke();
  paintAlong(last, last);
});

// The first finger of two has painted before the second came.
function takeBackStroke() {
  for (const [place, before] of stroke) current().mask[place] = before;
  endStroke();
}

canvas.addEventListener("pointermove", event => {
  const before = pressed.get(event.pointerId);
  if (before && pressed.size === 2) pinch(before, event);
  else if (before && isMoving) {
    view.x += event.clientX - before.clientX;
    view.y += event.clientY - before.clientY;
  } else if (stroke) {
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) {
      const place = placeOf(each);
      paintAlong(last, place);
      last = place;
    }
  }
  if (before) pressed.set(event.pointerId, event);
  pointer = placeOf(event);
  draw();
});

function pinch(before, event) {
  const other = [...pressed.values()].find(each => each.pointerId !== event.pointerId);
  const distance = each => Math.hypot(each.clientX - other.clientX, each.clientY - other.clientY);
  const box = canvas.getBoundingClientRect();
  view.x += (event.clientX - before.clientX) / 2;
  view.y += (event.clientY - before.clientY) / 2;
  const middle = [(event.clientX + other.clientX) / 2 - box.left, (event.clientY + other.clientY) / 2 - box.top];
  zoom(distance(event) / Math.max(distance(before), 1), ...middle);
}

function release(event) {
  pressed.delete(event.pointerId);
  if (pressed.size) return;
  if (stroke) endStroke();
  isMoving = false;
}

canvas.addEventListener("pointerup", release);
canvas.addEventListener("pointercancel", release);
canvas.addEventListener("pointerleave", () => {
  if (!pressed.size) pointer = null;
  draw();
});
canvas.addEventListener("auxclick", event => event.preventDefault());
canvas.addEventListener("wheel", event => {
  event.preventDefault();
  const box = canvas.getBoundingClientRect();
  zoom(2 ** (-event.deltaY / (event.deltaMode ? 6 : 240)), event.clientX - box.left, event.clientY - box.top);
}, { passive: false });

// Keys

const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const actions = {
  s: () => setTool("segment"), b: () => setTool("brush"), e: () => setTool("eraser"), h: () => setTool("move"),
  l: () => setLevel((state.level + 1) % data.levels.length), r: fillRest, i: () => choose(IGNORE),
  n: () => show(state.image + 1), p: () => show(state.image - 1), PageDown: () => show(state.image + 1),
  PageUp: () => show(state.image - 1), z: undo, y: redo, g: () => toggle("edges"), v: () => toggle("labels"),
  k: () => toggle("protect"), "[": () => setSize(state.size - 1), "]": () => setSize(state.size + 1),
  "+": () => zoomMiddle(1.5), "=": () => zoomMiddle(1.5), "-": () => zoomMiddle(1 / 1.5), Home: fit,
  "?": () => ($("help").open = !$("help").open),
};

addEventListener("keydown", event => {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey) {
    if (key !== "z" && key !== "y") return;
    event.preventDefault();
    return key === "y" || event.shiftKey ? redo() : undo();
  }
  if (event.altKey || (event.target.type === "range" && !/^[a-z0-9]$/.test(key))) return;
  if (event.target === canvas && (arrows[key] || key === "Enter" || key === " ")) {
    event.preventDefault();
    return keyOnCanvas(key, event.shiftKey);
  }
  const index = CLASS_KEYS.indexOf(key);
  if (key.length === 1 && index >= 0 && index < data.classes.length) choose(index);
  else if (actions[key]) {
    event.preventDefault();
    actions[key]();
  }
});
addEventListener("keyup", event => event.key === " " && (isSpaceDown = false));

function keyOnCanvas(key, isFar) {
  if (key === " ") {
    isSpaceDown = true;
    return;
  }
  pointer = pointer && isInside(pointer) ? pointer : { x: width / 2, y: height / 2 };
  pointer = { x: Math.floor(pointer.x) + 0.5, y: Math.floor(pointer.y) + 0.5, isByKeys: true };
  if (key === "Enter") {
    if (stroke || state.tool === "move") return;
    beginStroke();
    paintAt(pointer.x, pointer.y);
    endStroke();
    return;
  }
  const far = isFar ? 8 : 1;
  pointer.x = clamp(pointer.x + far * arrows[key][0], 0.5, width - 0.5);
  pointer.y = clamp(pointer.y + far * arrows[key][1], 0.5, height - 0.5);
  const label = current().mask[Math.floor(pointer.y) * width + Math.floor(pointer.x)];
  say(`Row ${Math.floor(pointer.y) + 1}, column ${Math.floor(pointer.x) + 1}: ${nameOf(label)}`);
  draw();
}

// What is chosen

const nameOf = label => (label === UNSAID ? "no label yet" : label === IGNORE ? "ignore" : data.classes[label].name);

function press(group, isPressed) {
  for (const button of document.querySelectorAll(`[data-${group}]`))
    button.setAttribute("aria-pressed", isPressed(button.dataset[group]));
}

function choose(label) {
  state.chosen = label;
  if (state.tool === "eraser" || state.tool === "move") setTool("segment");
  press("label", each => Number(each) === label);
}

function setTool(tool) {
  state.tool = tool;
  press("tool", each => each === tool);
  canvas.dataset.cursor = tool;
  draw();
}

function setLevel(level) {
  state.level = level;
  hovered = -1;
  press("level", each => Number(each) === level);
  draw();
}

function setSize(size) {
  state.size = clamp(size, 1, Number($("size").max));
  $("size").value = state.size;
  $("size-shown").textContent = `${state.size} px`;
  draw();
}

function toggle(id) {
  $(id).checked = !$(id).checked;
  tint();
  draw();
}

function show(index) {
  if (stroke || index < 0 || index >= images.length) return;
  state.image = index;
  hovered = -1;
  pointer = null;
  $("previous").disabled = index === 0;
  $("next").disabled = index === images.length - 1;
  $("title").textContent = `Image ${index + 1} of ${images.length}`;
  $("key").textContent = current().key;
  document.querySelectorAll("#images button").forEach((button, number) => {
    button.setAttribute("aria-current", number === index);
    if (number === index) button.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
  masksChanged(current());
  fit();
}

// Progress

function countSaid(image) {
  image.saidPixels = image.mask.reduce((count, label) => count + (label !== UNSAID), 0);
}

const percentOf = share => `${share === 1 ? 100 : Math.floor(100 * share)} %`;

function masksChanged(image) {
  countSaid(image);
  const share = image.saidPixels / (height * width);
  const button = $(`image-${image.key}`);
  button.style.setProperty("--share", share);
  button.setAttribute("aria-label", `Image ${images.indexOf(image) + 1}, ${image.key}, ${percentOf(share)} labeled`);
  showProgress();
  if (image !== current()) return;
  $("share").textContent = `${percentOf(share)} labeled`;
  $("undo").disabled = !image.undo.length;
  $("redo").disabled = !image.redo.length;
  tint();
  draw();
}

function showProgress() {
  const finished = images.filter(each => each.saidPixels === height * width).length;
  const said = images.reduce((count, each) => count + each.saidPixels, 0) / (images.length * height * width);
  $("progress").value = said;
  $("progress-shown").textContent = `${finished} of ${images.length} images finished, ${percentOf(said)} of all pixels labeled`;
}

function say(text) {
  $("status").textContent = text;
}

// The download: a zip archive without compression of PNG without compression

const text = letters => new TextEncoder().encode(letters);
const big = number => [number >>> 24, (number >>> 16) & 255, (number >>> 8) & 255, number & 255];
const little = (number, bytes) => Array.from({ length: bytes }, (_, index) => (number >>> (8 * index)) & 255);

function joined(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let place = 0;
  for (const part of parts) {
    whole.set(part, place);
    place += part.length;
  }
  return whole;
}

const crcTable = Uint32Array.from({ length: 256 }, (_, byte) => {
  let rest = byte;
  for (let bit = 0; bit < 8; bit++) rest = rest & 1 ? 0xedb88320 ^ (rest >>> 1) : rest >>> 1;
  return rest;
});

function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) crc = crcTable[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

function adler32(bytes) {
  let low = 1;
  let high = 0;
  for (const byte of bytes) {
    low = (low + byte) % 65521;
    high = (high + low) % 65521;
  }
  return ((high << 16) | low) >>> 0;
}

function pngChunk(name, content) {
  const body = joined([text(name), content]);
  return joined([big(content.length), body, big(crc32(body))]);
}

function zlibStored(bytes) {
  const parts = [[0x78, 0x01]];
  for (let start = 0; start < bytes.length; start += 65535) {
    const block = bytes.subarray(start, start + 65535);
    const isLast = start + 65535 >= bytes.length;
    parts.push([Number(isLast), ...little(block.length, 2), ...little(~block.length & 65535, 2)], block);
  }
  return joined([...parts, big(adler32(bytes))]);
}

// 8-bit gray, each pixel its class's index.
function pngOf(mask) {
  const rows = new Uint8Array(height * (width + 1));
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) rows[y * (width + 1) + 1 + x] = Math.min(mask[y * width + x], IGNORE);
  return joined([
    [137, 80, 78, 71, 13, 10, 26, 10],
    pngChunk("IHDR", [...big(width), ...big(height), 8, 0, 0, 0, 0]),
    pngChunk("IDAT", zlibStored(rows)),
    pngChunk("IEND", []),
  ]);
}

function zipOf(files) {
  const parts = [];
  const directory = [];
  let place = 0;
  for (const [name, content] of files) {
    // Version 2.0, no flags, stored, midnight of 1 January 1980.
    const about = [
      ...little(20, 2), ...little(0, 2), ...little(0, 2), ...little(0, 2), ...little(33, 2),
      ...little(crc32(content), 4), ...little(content.length, 4), ...little(content.length, 4),
      ...little(name.length, 2), ...little(0, 2),
    ];
    parts.push([0x50, 0x4b, 3, 4, ...about], text(name), content);
    directory.push([0x50, 0x4b, 1, 2, ...little(20, 2), ...about, ...little(0, 10), ...little(place, 4)], text(name));
    place += 30 + name.length + content.length;
  }
  const index = joined(directory);
  const counts = [...little(files.length, 2), ...little(files.length, 2)];
  return joined([...parts, index, [0x50, 0x4b, 5, 6, 0, 0, 0, 0, ...counts, ...little(index.length, 4), ...little(place, 4), 0, 0]]);
}

function download() {
  if (stroke) return;
  const labeled = images.filter(each => each.saidPixels || each.hadLabels);
  if (!labeled.length) return say("No image has labels yet.");
  const about = {
    format: "labelmill-page", version: 1, set: data.set, classes: data.classes.map(each => each.name),
    images: Object.fromEntries(labeled.map(each => [each.key, each.sha256])),
  };
  const masks = labeled.map(each => [`masks/${each.key}.png`, pngOf(each.mask)]);
  const zip = zipOf([["classes.json", text(JSON.stringify(about, null, 1) + "\n")], ...masks]);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([zip], { type: "application/zip" }));
  link.download = `${data.folder}-masks.zip`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  isDownloaded = true;
  const missing = images.length - labeled.length;
  const option = labeled.some(each => each.hadLabels) ? " --replace" : "";
  say(`${labeled.length} masks downloaded${missing ? `, ${missing} images have no labels` : ""}. Next: labelmill annotate import ${data.folder} ${data.folder}-masks.zip${option}`);
}

// Start

for (const button of document.querySelectorAll("[data-label]"))
  button.addEventListener("click", () => choose(Number(button.dataset.label)));
for (const button of document.querySelectorAll("[data-tool]"))
  button.addEventListener("click", () => setTool(button.dataset.tool));
for (const button of document.querySelectorAll("[data-level]"))
  button.addEventListener("click", () => setLevel(Number(button.dataset.level)));
for (const [index, button] of document.querySelectorAll("#images button").entries())
  button.addEventListener("click", () => show(index));
for (const kbd of document.querySelectorAll("kbd[data-class]")) {
  const key = CLASS_KEYS[kbd.dataset.class];
  kbd.textContent = key ?? "";
  kbd.hidden = key === undefined;
}
for (const id of ["edges", "labels", "strength"])
  $(id).addEventListener("input", () => {
    tint();
    draw();
  });
for (const [id, action] of Object.entries({
  previous: actions.p, next: actions.n, undo, redo, rest: fillRest, download, fit,
  larger: () => zoomMiddle(1.5), smaller: () => zoomMiddle(1 / 1.5),
}))
  $(id).addEventListener("click", action);
$("size").addEventListener("input", () => setSize(Number($("size").value)));
$("size").max = Math.max(16, Math.round(Math.min(height, width) / 4));

images.forEach(restore);
images.forEach(masksChanged);
choose(state.chosen);
setTool("segment");
setLevel(Math.min(1, data.levels.length - 1));
setSize(Math.max(2, Math.round(Math.min(height, width) / 24)));
show(0);
new ResizeObserver(fitCanvas).observe(canvas);
