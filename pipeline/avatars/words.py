"""Text to words, for training and for prompts alike."""


def split_words(text: str) -> list[str]:
    """Lower-case words; whatever is no letter or digit parts them, save - and ' within a word."""
    cleaned = "".join(letter if letter.isalnum() or letter in "-'" else " " for letter in text.lower())
    return [word.strip("-'") for word in cleaned.split() if word.strip("-'")]
