"""A compiled MLC package in TVM's own virtual machine."""
