"""`python llama_cpp_server.py FILE CONTEXT`: serve a GGUF file by llama.cpp; print the address; stop when stdin ends.

It is a process of its own, which is killed: in the tests' process the server's destructor waited once for ever.
"""

import os
import sys

import xllamacpp


def main(path: str, context: str) -> None:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.n_ctx, parameters.n_parallel, parameters.port = int(context), 1, 0
    parameters.warmup = False
    parameters.verbosity = 0
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
