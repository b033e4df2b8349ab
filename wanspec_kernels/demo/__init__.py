"""`wanspec demo`: a target that writes Python with drafts from other processes over slow links."""
