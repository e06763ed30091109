"""The options of a server, with the texts and bounds that the command line shows."""

from pathlib import Path

from pydantic import Field

from slmpack.records import Record

MOST_SLOTS = 64


class ServeOptions(Record):
    """How a server listens, how much it takes at a time, and what it writes down."""

    host: str = Field("127.0.0.1", description="address to listen at; another one than this machine's needs a key")
    port: int = Field(8000, ge=0, le=65535, description="port to listen at; 0 takes a free one, which is printed")
    api_key_file: Path | None = Field(None, description="file of keys, one a line, one of which a request must have")
    without_key: bool = Field(False, description="listen at another address than this machine's without a key")
    slots: int = Field(8, ge=1, le=MOST_SLOTS, description="answers at a time of one model")
    context: int | None = Field(
        None,
        ge=64,
        description="tokens of a prompt and its answer at most (default: the model's, or what memory holds)",
    )
    threads: int | None = Field(None, ge=1, le=256, description="threads of one model (default: this process's cores)")
    queue: int = Field(64, ge=1, le=10_000, description="answers that may wait for a slot; more are refused with 429")
    follow: bool = Field(False, description="take up a new version behind an alias, without losing a request")
    body_bytes: int = Field(4 << 20, ge=1024, le=64 << 20, description="bytes of a request at most")
    body_seconds: float = Field(30.0, gt=0, description="seconds in which a client must send a request, or read on")
    stop_seconds: float = Field(30.0, ge=0, description="seconds for answers under way when the server is stopped")
    log_prompts: bool = Field(False, description="write the texts of requests and answers to the log")
    trace: str | None = Field(
        None, min_length=1, description="MLflow experiment to which each answer is traced, without its texts"
    )
    trace_texts: bool = Field(False, description="trace the texts of requests and answers as well")
    trust_code: bool = False
    models: int = Field(1, ge=1, description="versions that share this machine's memory")
