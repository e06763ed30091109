"""Texts about parameters that the dashboard's form and the command line both show."""

NAME = "The registered model; taken from the source if left empty, where that says which it is."
PUBLISHED_NAME = "The registered model."
MODEL = "models:/NAME/VERSION, models:/NAME@ALIAS or models:/m-ID, logged by slmpack."
DATA = (
    "Chats, an object with messages a line: a file or folder on the machine that runs this; runs:/ID/PATH.jsonl; "
    "datasets:/NAME, which is the newest dataset of that name that a run in MLflow has for its input; or "
    "traces:/EXPERIMENT, the answers of a server that people marked as good."
)
TRUST_CODE = (
    "Also run a model whose code is not slmpack's own: loading it runs that code on the machine that runs this."
)
TRUST_POLICY = (
    "The keys that may sign models, and which; what is not signed by one of them is refused (default: $SLMPACK_TRUST, "
    "else slmpack.toml here or in the folder of settings, if there is one)."
)
SIGNING_KEY = (
    "The private key, with its certificates if it has some: FILE, env:NAME of a variable, or pkcs11:... in a token."
)
PROMOTED_SOURCE = "The version: an alias that it has, such as cpu-int4, or its number."
PROMOTED_ALIAS = "The alias that it gets, such as production; not one of a target."
ACCEPT_WAIVER = "Also take a version that was published with a waiver."
