"""Models: which versions are served, by the names a request may call them."""

from collections.abc import Iterator

from slmpack.serve.failures import NOT_FOUND, Failure
from slmpack.serve.served_model import ServedModel


class Models:
    """The served versions in the order in which they were named; the first answers requests that name none."""

    def __init__(self) -> None:
        self._by_uri: dict[str, ServedModel] = {}

    def all(self) -> list[ServedModel]:
        """Return every version that takes requests."""
        return list(self._by_uri.values())

    def put(self, model: ServedModel) -> ServedModel | None:
        """Serve a version; return the one that was behind the same URI, which takes no request any more."""
        before = self._by_uri.get(model.located.uri)
        self._by_uri[model.located.uri] = model
        return before

    def cut_off(self) -> None:
        """End the answers under way, since the server stops."""
        for model in self.all():
            model.engine.cut_off()

    def find(self, name: str | None) -> ServedModel:
        """Return the version that a request names.

        Raises:
            Failure: none is called that.
        """
        models = self.all()
        if name is None:
            return models[0]
        for known, model in self._names():
            if name == known:
                return model
        listed = ", ".join(model.label for model in models)
        message = f"model: {name[:120]!r} was found; one of {listed} is expected"
        raise Failure(NOT_FOUND, message, param="model", code="model_not_found")

    def _names(self) -> Iterator[tuple[str, ServedModel]]:
        """Yield names, the exact ones before those that several may have."""
        for model in self.all():
            for name in model.names:
                yield name, model
        for model in self.all():
            yield model.located.name, model
