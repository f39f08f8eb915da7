"""How good a supervised network is as a labeler, and as a judge of other labelers."""
