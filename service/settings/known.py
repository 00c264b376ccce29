"""Every setting: its type, its default, and which ones go together."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service import limits
from service.adapter_names import named_adapters
from service.feedback import places
from service.feedback.ledger import FeedbackOptions
from service.keys import all_digests, known_digest

ENV_PREFIX = "DALORRA_"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s,*]+")


class Settings(BaseSettings):
    """Everything that can be set. Build it with `load_settings`, which explains what is wrong."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Names, separated by commas, that requests may have in Host (* for any); if "
        "unset, this machine's on a loopback address, else any.",
    )
    max_connections: int = Field(1_000, ge=1, description="Connections at once.")
    header_seconds: float = Field(
        10.0, gt=0, description="Time for the head of a request to come. Then 408."
    )
    body_seconds: float = Field(30.0, gt=0, description="Time for its body to come. Then 408.")

    adapter: Path | None = Field(
        None,
        description="Adapter directory, or owner/name@revision on the hub; the bundled one if "
        "unset.",
    )
    adapters: Annotated[dict[str, Path], NoDecode] = Field(
        default_factory=dict,
        description="Instead of adapter: several by name, as name=directory,… or "
        "name=owner/name,…; the first is the default.",
    )
    adapter_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        (),
        description="Folders, separated by commas, below which adapters may be loaded over HTTP; "
        "none may if there is none.",
    )
    questions_adapter: str | None = Field(
        None,
        description="Name of the adapter that answers typed questions; the first that can if "
        "unset.",
    )
    question_models: Annotated[tuple[str, ...], NoDecode] = Field(
        ("jev-latest", "jev-preview", "gpt-6-luna"),
        description="Names of models, separated by commas, that stand for that adapter; * for "
        "any name.",
    )
    refuse_unaccepted: bool = Field(
        False,
        description="/v1/decisions answers with a refusal where an answer is not accepted.",
    )
    hand_made_policies: bool = Field(
        False,
        description="Accept by policies, too, that are not as calibration wrote them; they promise "
        "nothing.",
    )
    max_adapters: int = Field(16, ge=1, description="Adapters loaded at once.")
    base_model: str | None = Field(
        None,
        description="Hub id, folder or GGUF file; the one the adapter was trained on if unset.",
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, …")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="Of the base model.")
    quantize: Literal["none", "8bit", "4bit"] | None = Field(
        None,
        description="Linear modules of the base model in 8 or 4 bit (bitsandbytes); as the first "
        "adapter was trained if unset.",
    )
    on_overflow: Literal["truncate", "reject"] = Field(
        "truncate", description="What happens to an over-long input: cut, or answered with 422."
    )
    max_tokens: int | None = Field(
        None,
        ge=1,
        description="Longest input, template and cue included, where the adapter takes longer "
        "ones: those are answered with 422.",
    )

    max_queue_requests: int = Field(2_048, ge=1, description="Inputs that may wait.")
    max_queue_rows: int = Field(65_536, ge=1, description="Packed rows that may wait.")
    batch_rows: int = Field(2_048, ge=1, description="Packed rows of one forward.")
    prefix_cache_mib: int = Field(
        256,
        ge=0,
        description="Memory for keys and values of prompts that start alike; 0 turns it off.",
    )
    cuda_graphs: bool | None = Field(
        None,
        description="Record short forwards of every shape before an adapter is ready and replay "
        "them; they do without the prefix cache. On a GPU where nothing else is said.",
    )
    max_batch_inputs: int = Field(128, ge=1, description="Inputs of one /predict/batch request.")
    max_questions: int = Field(
        400, ge=1, description="Questions of one request to /v1/systemone or /v1/decisions."
    )
    max_body_bytes: int = Field(2_000_000, ge=1, description="Longest request body.")
    bodies_mib: int = Field(
        64, ge=1, description="Memory for all request bodies in hand. Above it, 503."
    )
    request_timeout_seconds: float = Field(
        60.0, gt=0, description="For an answer: what will not be ready by then is refused with 429."
    )
    drain_seconds: float = Field(30.0, ge=0, description="Time to finish the queue on SIGTERM.")
    stall_seconds: float = Field(
        300.0, gt=0, description="A forward that takes longer counts as hung: liveness fails."
    )
    dead_seconds: float = Field(
        10.0, gt=0, description="Once liveness has failed for so long, the process ends."
    )
    tokenizer_threads: int = Field(2, ge=1, description="Threads beside the model thread.")

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="Accepted bearer keys or their hashes (dalorra hash-key), separated by commas; "
        "open to all if there is none.",
    )
    api_keys_file: Path | None = Field(
        None, description="File with one bearer key or its hash per line; # begins a comment."
    )
    admin_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="Keys, written likewise, that may also load and unload adapters; nobody may "
        "if there is none.",
    )
    admin_keys_file: Path | None = Field(None, description="File with such keys.")
    rate_limit: float | None = Field(
        None, gt=0, description="Requests per second that each key may make; no limit if unset."
    )
    rate_burst: int = Field(20, ge=1, description="Requests that a key may make at once.")
    limits_url: SecretStr | None = Field(
        None,
        description="redis://… of the database that counts them for all replicas; each counts by "
        "itself if unset.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Origins, separated by commas, whose web pages may ask (* for any); none "
        "if unset.",
    )
    ssl_certfile: Path | None = Field(
        None, description="PEM certificate chain: the server then speaks TLS."
    )
    ssl_keyfile: Path | None = Field(
        None, description="Its private key, if it is not in the same file; not encrypted."
    )

    feedback_store: Path | None = Field(
        None, description="SQLite file that keeps answers for feedback; none are kept if unset."
    )
    feedback_url: SecretStr | None = Field(
        None,
        description="Instead: postgresql://… of the database that keeps them for all replicas.",
    )
    feedback_retention_days: float = Field(30.0, gt=0, description="Then they are deleted.")
    feedback_max_rows: int = Field(
        1_000_000, ge=1, description="Most answers kept; the oldest without feedback go first."
    )
    feedback_inputs: bool = Field(False, description="Keep the inputs with them, too.")
    feedback_alpha: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="Probability of ever calling a promise broken that is kept.",
    )
    policy_action: Literal["report", "strict"] = Field(
        "report",
        description="Once the promise is broken: report it, or turn every accept into escalate.",
    )

    mcp: bool | None = Field(
        None, description="Serve /mcp; if unset, where the mcp extra is installed."
    )

    otel: bool = Field(
        False, description="Export OpenTelemetry spans, as the OTEL_… variables say."
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least.")
    log_inputs: bool = Field(
        False, description="Log the inputs, too, which may hold what must not be kept."
    )
    log_format: Literal["json", "console"] = Field("json", description="One object per line.")

    @field_validator("adapters", mode="before")
    @classmethod
    def _split_adapters(cls, value: object) -> object:
        return named_adapters(value)

    @field_validator(
        "adapter_roots",
        "admin_keys",
        "allowed_hosts",
        "api_keys",
        "cors_origins",
        "question_models",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(value.split(",")) if isinstance(value, str) else value

    @field_validator("feedback_url", "limits_url")
    @classmethod
    def _check_address(cls, url: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        schemes = places.SCHEMES if info.field_name == "feedback_url" else limits.SCHEMES
        if url is not None and not url.get_secret_value().startswith(schemes):
            raise ValueError(f"write {schemes[0]}user:password@host/database")
        return url

    @field_validator("api_keys", "admin_keys")
    @classmethod
    def _strip_keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        stripped = tuple(SecretStr(key.get_secret_value().strip()) for key in keys)
        for key in stripped:
            if not key:
                raise ValueError("a key is empty")
            known_digest(key.get_secret_value())
        return stripped

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        stripped = tuple(host.strip() for host in hosts)
        for host in stripped:
            if host != "*" and not _HOST.fullmatch(host):
                raise ValueError(f"{host!r} is no name of a host: write it without scheme and port")
        return stripped

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        stripped = tuple(origin.strip() for origin in origins)
        for origin in stripped:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is no origin: write scheme://host or scheme://host:port"
                )
        return stripped

    @model_validator(mode="after")
    def _batch_fits_queue(self) -> Self:
        if self.max_batch_inputs > self.max_queue_requests:
            raise ValueError(
                f"max_batch_inputs ({self.max_batch_inputs}) is above max_queue_requests "
                f"({self.max_queue_requests}): such a batch would find a place in an empty "
                "queue only"
            )
        if self.max_body_bytes > self.bodies_mib * 2**20:
            raise ValueError(
                f"max_body_bytes ({self.max_body_bytes}) is above bodies_mib ({self.bodies_mib}): "
                "such a body would never be read"
            )
        return self

    @model_validator(mode="after")
    def _limited_by_key(self) -> Self:
        if self.rate_limit is not None and not (self.api_keys or self.api_keys_file):
            raise ValueError("rate_limit holds for each key: it needs api_keys or api_keys_file")
        if self.limits_url is not None and self.rate_limit is None:
            raise ValueError("limits_url is where rate_limit is counted: set rate_limit, too")
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("ssl_keyfile needs ssl_certfile, the certificate of that key")
        return self

    @model_validator(mode="after")
    def _adapters_fit(self) -> Self:
        if self.adapter is not None and self.adapters:
            raise ValueError("give adapter or adapters, not both")
        if len(self.adapters) > self.max_adapters:
            raise ValueError(
                f"adapters names {len(self.adapters)}, max_adapters allows {self.max_adapters}"
            )
        return self

    def first_adapters(self) -> list[tuple[str | None, Path | None]]:
        """Names and directories to load; None: the adapter's own name, the bundled adapter."""
        return list(self.adapters.items()) or [(None, self.adapter)]

    @model_validator(mode="after")
    def _strict_by_feedback(self) -> Self:
        if self.feedback_store is not None and self.feedback_url is not None:
            raise ValueError("give feedback_store or feedback_url, not both")
        if self.policy_action == "strict" and self._feedback_place is None:
            raise ValueError(
                "policy_action strict needs feedback to know of a broken promise: set "
                "feedback_store or feedback_url"
            )
        return self

    @property
    def _feedback_place(self) -> Path | str | None:
        return self.feedback_url.get_secret_value() if self.feedback_url else self.feedback_store

    def feedback_options(self) -> FeedbackOptions | None:
        """What is kept of answers; None: nothing."""
        if (place := self._feedback_place) is None:
            return None
        return FeedbackOptions(
            place=place,
            retention_seconds=86_400.0 * self.feedback_retention_days,
            max_answers=self.feedback_max_rows,
            inputs=self.feedback_inputs,
            alpha=self.feedback_alpha,
            strict=self.policy_action == "strict",
        )

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        return self.host in _LOOPBACK

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names that requests may have in `Host`; none: any."""
        if "*" in self.allowed_hosts:
            return ()
        return self.allowed_hosts or (_LOCAL_NAMES if self.on_loopback else ())

    def key_digests(self) -> tuple[bytes, ...]:
        """SHA-256 of the clients' bearer keys; see `all_digests` for what it raises."""
        keys = [key.get_secret_value() for key in self.api_keys]
        return all_digests(keys, self.api_keys_file, "api_keys_file")

    def admin_key_digests(self) -> tuple[bytes, ...]:
        """SHA-256 of the administrators' bearer keys, likewise."""
        keys = [key.get_secret_value() for key in self.admin_keys]
        return all_digests(keys, self.admin_keys_file, "admin_keys_file")

    def redacted(self) -> dict[str, Any]:
        """All settings, fit for a log: keys are counted, not shown."""
        shown = self.model_dump(mode="json")
        shown["api_keys"] = f"{len(self.api_keys)} set"
        shown["admin_keys"] = f"{len(self.admin_keys)} set"
        return shown
