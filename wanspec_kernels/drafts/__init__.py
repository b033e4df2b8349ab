"""The drafts of many sources: pools that merge them, rows chosen from these, and sessions.

State machines without clock, socket or thread; the authority on their messages is docs/protocol.md.
"""
