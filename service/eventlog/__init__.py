"""The event log: what users were shown and what they did, on its way from Redis to Parquet.

The history store writes rows into streams beside the histories, inside the script that stores an event; `oneslate
collect` drains them. Users stand under pseudonyms.
"""
