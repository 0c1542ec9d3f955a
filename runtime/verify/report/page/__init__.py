"""The report as a page: one file, nothing fetched, readable on a phone."""
