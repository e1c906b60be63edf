"""From rows of a source to samples of a layout."""
