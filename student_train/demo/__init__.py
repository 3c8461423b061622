"""A local web page: models side by side on a sentence, with the time of each answer."""
