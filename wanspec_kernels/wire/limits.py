"""Bounds of the wire. Both sides refuse what lies past them, sent or received."""

VERSION = 3

MAX_MESSAGE_BYTES = 256 * 1024  # of one frame, with all the messages in it
MAX_PLAIN_BYTES = 16 * 1024  # of a frame of several messages; without draws none is larger
MAX_FRAME_MESSAGES = 256
MAX_TEXT_BYTES = 1024  # of one string, in UTF-8
VOCABULARY_BYTES = 32

MAX_TOKEN_ID = 2**31 - 1
MAX_LENGTH = 2**31 - 1  # of a committed text
MAX_PROMPT_TOKENS = 32768  # of one OPEN: the text committed so far
MAX_COMMIT_TOKENS = 1024  # of one COMMIT

MAX_REQUESTS = 4096  # of one drafter
MAX_TREE_NODES = 4096  # a drafter keeps for one request; the target verifies far fewer
MAX_DRAFT_NODES = 256  # of one DRAFT
MAX_DEPTH = 64  # of a DRAFT's deepest node; a child of the base has depth 1
MAX_DRAWS = 64  # of one expansion
MAX_SUPPORT = 64  # tokens of one expansion's distribution
MAX_WEIGHT = 2**16 - 1

MIN_PEER_MESSAGE_BYTES = 1024
MAX_HEARTBEAT_MS = 600_000
MAX_CLOCK_US = 2**63 - 1
MAX_REQUEST = 2**64 - 1
MAX_CHECK = 2**32 - 1
