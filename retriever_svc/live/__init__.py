"""The knowledge base while it serves: snapshots of its versions, followed as they are committed."""
