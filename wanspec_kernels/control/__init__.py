"""What target, home and sources take and are worth, and whether to verify, to wait or to draft.

State machines without clock, socket or thread.
"""
