"""Each data set has a module here, whose class yields `Example`s: prompts with logged completions and rewards."""
