"""Modbus TCP, RTU over TCP and RTU: part of collect (OT side, user of collect, writes only the ring and collect/). Reads; never writes."""
