"""Serve: the OpenAI API over proved versions, several requests at a time.

    client --HTTP--> app (FastAPI) --checked request--> ServedModel: text, ids --one line a step--> engine process
    client <--SSE--- app           <--chunks----------- AnswerText: ids, text <--tokens of all---- scheduler, slots

Text becomes ids and ids become text by the wrapper's own code (`slmpack.log.chat_model`), which was proved; the engine
runs the package's own graph. Imports `log` and below; knows no proof, and neither torch nor transformers.

Door: serve.serve, options.ServeOptions
"""
