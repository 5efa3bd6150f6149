"""The retriever service: query encoder, FAISS index, versioned knowledge base."""
