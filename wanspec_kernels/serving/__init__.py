"""The sockets: the endpoint that drafters dial."""
