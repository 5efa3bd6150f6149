"""Generated protobuf and gRPC stubs of package ragserve.v1. Made by `make protos`; never edited."""
