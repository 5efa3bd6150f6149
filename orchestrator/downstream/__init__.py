"""The retriever and the generator as the pipeline sees them."""
