"""One OPC UA server as a source: guarded session, own publish pump, notification bytes straight to columns. Part of collect."""
