"""The fields of the chat model, and where its model runs by them."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import ConfigDict, Field, SecretStr, model_validator

from langchain_tops.backends import Backend, LocalBackend
from langchain_tops.server import ServerBackend, check_options_of_a_server
from langchain_tops.settings import (
    SettingFields,
    common_names,
    override,
    read_settings,
    refuse_unknown,
    setting_names,
)
from tops_engine import __version__
from tops_engine.errors import InvalidInput


class ChatFields(SettingFields):
    """The fields of :class:`~langchain_tops.ChatTOPSLlava` beside the options of the engine."""

    # Options of methods that are defined later are extra values; the validator below refuses unknown options.
    # Pydantic's errors do not show the input, which may hold the key.
    model_config = ConfigDict(extra="allow", populate_by_name=True, protected_namespaces=(), hide_input_in_errors=True)

    allowed_image_hosts: tuple[str, ...] = Field(
        default=(),
        description="Hosts from which http(s) pictures may be fetched: names, *.example.org, or * for any public host. "
        "None by default; private addresses are always refused.",
    )
    streaming: bool = Field(default=False, description="Stream also when invoke is called.")
    base_url: str | None = Field(
        default=None,
        description="Address of an OpenAI-compatible server that runs the model, such as http://host:8000/v1. Unset, "
        "the model runs on this machine.",
    )
    encode: str | None = Field(
        default=None,
        description="With base_url: where pictures are encoded and pruned before they are sent. `here` runs the "
        "vision tower of the server's checkpoint on this machine, with the options of the model (device, dtype ...); "
        "an address, or several separated by commas, asks encoders of `tops encode-server`. The server must be vLLM "
        "with --enable-mm-embeds. Unset, the server gets the pictures.",
    )
    timeout: float | None = Field(
        default=None,
        exclude=True,
        description="With base_url: seconds to wait without any data from the server, for each attempt (600). "
        "Otherwise without effect.",
    )
    max_retries: int | None = Field(
        default=None,
        exclude=True,
        description="With base_url: how often to repeat a request if there is no connection, or if the server is busy "
        "or fails (2). Otherwise without effect.",
    )
    api_key: SecretStr | None = Field(
        default=None, exclude=True, description="With base_url: the key of the server. Otherwise without effect."
    )

    @model_validator(mode="before")
    @classmethod
    def _checked_by_the_settings(cls, values: Any) -> Any:
        """Convert options to the form of the settings, with the errors of the settings."""
        if not isinstance(values, dict):
            return values
        options = {name: value for name, value in common_names(values).items() if value is not None}
        fields = {field.alias or name for name, field in cls.model_fields.items()}
        refuse_unknown(options, fields | setting_names())
        if "base_url" in options:
            options = check_options_of_a_server(options)
        elif "encode" in options:
            raise InvalidInput("encode is for a model behind a server; give its base_url, or leave encode out.")
        for group in read_settings(options):
            for name in group.model_fields_set & type(group).model_fields.keys():
                options[name] = getattr(group, name)
        return options

    @model_validator(mode="after")
    def _leave_the_rest_to_the_server(self) -> Self:
        names = {(field.alias or name): name for name, field in type(self).model_fields.items()}
        options = names.keys() & setting_names()
        given = {name for name in options if names[name] in self.model_fields_set}
        self.__dict__.update({names[name]: None for name in self._backend().fields_left_open(options, given)})
        return self

    @model_validator(mode="after")
    def _note_version_of_tops(self) -> Self:
        self._add_version("tops-engine", __version__)
        return self

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Return True: ``langchain_core.load.dumps`` writes the model and ``loads`` reads it, without its weights."""
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Return the package, whose name is public; the names of its modules may change."""
        return ["langchain_tops"]

    @property
    def lc_secrets(self) -> dict[str, str]:
        """The key is never written; ``loads`` takes it from its ``secrets_map``, or the environment if allowed to."""
        return {"api_key": "TOPS_API_KEY"}

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """What LangChain does not write by itself: values that are not JSON, options of plugins, limits of a server."""
        pruning = read_settings(self._options()).pruning.model_dump(mode="json", exclude_unset=True)
        limits = {"timeout": self.timeout, "max_retries": self.max_retries}
        return pruning | {name: value for name, value in limits.items() if value is not None}

    def _options(self, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return all options under the engine's names, with the ``changes`` of one call."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        values, names = common_names(fields | (self.model_extra or {})), setting_names()
        given = {name: value for name, value in values.items() if name in names and value is not None}
        return override(given, changes or {})

    def _backend(self, options: Mapping[str, Any] | None = None) -> Backend[Any]:
        """Return where the model runs; the ``options`` of a call may have other limits for a server."""
        if self.base_url is None:
            return LocalBackend()
        timeout, max_retries = ((options or {}).get(name, getattr(self, name)) for name in ("timeout", "max_retries"))
        key = None if self.api_key is None else self.api_key.get_secret_value()
        return ServerBackend(self.base_url, key, timeout, max_retries, self.encode)
