"""Training of the models that are served (arXiv 2005.11401, section 2.4). A leaf: nothing imports it."""
