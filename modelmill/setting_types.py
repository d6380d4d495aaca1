"""The types of the settings that are more than a number: URLs, hosts and folders.

Each is checked when a process starts. A message says what to write instead. It shows no part of the value,
because a URL may hold a password.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from pydantic import AfterValidator, BeforeValidator

from modelmill.errors import ConfigError

T = TypeVar("T")

REDIS_SCHEMES = ("redis", "rediss", "unix")
REDIS_OPTIONS = ("db", "client_name", "health_check_interval")
"""Options of a URL. The store sets the others, such as time limits, itself."""
TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
REDIS_FORM = "redis://:PASSWORD@HOST:6379/0"
ENCODED = "write # as %23, / as %2F, ? as %3F, @ as %40, [ as %5B and % as %25"


def redis_url(text: str) -> str:
    """A URL that redis-py and Celery read in the same way."""
    _check_form(text, f"such as {REDIS_FORM}")
    scheme = text.partition("://")[0]
    if scheme not in REDIS_SCHEMES:
        raise ValueError(f"has a scheme that is not known here; write {REDIS_FORM}, rediss:// or unix://")
    parts = urlsplit(text)
    # Without its own words, the part behind the host would silently mean database 0.
    if scheme == "unix":
        if parts.hostname or not parts.path.strip("/"):
            raise ValueError("names no socket; write unix:///run/redis.sock?db=0")
    else:
        _check_host(text, REDIS_FORM)
        if not re.fullmatch(r"/?|/\d{1,5}/?", parts.path):
            raise ValueError("names a database that is not a number; write it behind the port, as in /0")
    _check_query(scheme, parts.query)
    return text


def broker_url(text: str) -> str:
    """A URL of Celery's broker, or several, separated by semicolons."""
    for url in _alternatives(text):
        _check_form(url, f"such as {REDIS_FORM} or amqp://USER:PASSWORD@HOST:5672//")
        scheme = url.partition("://")[0]
        if scheme in REDIS_SCHEMES:
            redis_url(url)
        else:
            _check_transport(scheme)
            _check_port(url)
    return text


def as_broker_url(text: str) -> str:
    """The URL as Celery's library kombu writes it.

    kombu knows no ``unix://`` and no ``?db=0``, takes a semicolon in a password for the end of the URL, and
    does not check the certificate behind ``rediss://`` unless the URL asks for it.
    """
    return ";".join(_as_kombu(url) for url in _alternatives(text))


def blob_url(text: str) -> str:
    """A folder, or a URL for fsspec."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        if re.match(r"[a-z][a-z0-9+]+:", text):
            raise ValueError("is neither a folder nor a URL; a URL has :// behind its scheme")
        return str(user_path(Path(text)))
    if scheme in ("file", "local") and not rest.startswith("/"):
        raise ValueError("names a host where a folder should be; write file:///var/lib/modelmill")
    if not rest.strip("/"):
        raise ValueError("names no place behind ://; write s3://bucket/prefix")
    return text


def host_name(text: str) -> str:
    """An address or a name to which a server binds."""
    text = text.removeprefix("[").removesuffix("]")
    if "://" in text or "/" in text:
        raise ValueError("must be an address or a name alone, such as 127.0.0.1, without a scheme or a path")
    if text.count(":") == 1:
        raise ValueError("must be an address or a name alone; the port is MODELMILL_PORT")
    if not re.fullmatch(r"[\w.:%-]+", text):
        raise ValueError("must be an address or a name of a host, such as 127.0.0.1")
    return text


def user_path(path: Path) -> Path:
    """A path whose ``~`` is replaced: only shells do so, not the files that set variables."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("begins with ~, but this user has no home folder; write the whole path") from None


def masked(text: str, *urls: str | None) -> str:
    """A text for logs, in which the passwords of ``urls`` are replaced."""
    for url in filter(None, urls):
        for part in _alternatives(url):
            user_info = part.partition("://")[2].rpartition("@")[0]
            secret = user_info.partition(":")[2] or user_info
            for form in filter(None, {secret, unquote(secret)}):
                text = text.replace(form, "***")
    return text


def _told(check: Callable[[T], T]) -> AfterValidator:
    """Makes sentences of the messages, which begin with a verb."""

    def checked(value: T) -> T:
        try:
            return check(value)
        except ValueError as error:
            raise ValueError(f"it {error}") from None

    return AfterValidator(checked)


def _hosts(text: str) -> str:
    from modelmill.hosts import Hosts

    try:
        Hosts(text, "")
    except ConfigError as error:
        raise ValueError(str(error).partition(": ")[2]) from None
    return text


def _networks(text: str) -> str:
    from modelmill.hosts import Networks

    try:
        Networks(text)
    except ConfigError as error:
        raise ValueError(str(error).partition(": ")[2]) from None
    return text


def _lower(value: Any) -> Any:
    words = {"true": "on", "yes": "on", "1": "on", "false": "off", "no": "off", "0": "off"}
    return words.get(value.lower(), value.lower()) if isinstance(value, str) else value


def _upper(value: Any) -> Any:
    return {"WARN": "WARNING"}.get(value.upper(), value.upper()) if isinstance(value, str) else value


RedisUrl = Annotated[str, _told(redis_url)]
BrokerUrl = Annotated[str, _told(broker_url)]
BlobUrl = Annotated[str, _told(blob_url)]
HostName = Annotated[str, _told(host_name)]
UserPath = Annotated[Path, _told(user_path)]
HostList = Annotated[str, AfterValidator(_hosts)]
NetworkList = Annotated[str, AfterValidator(_networks)]
OnOff = BeforeValidator(_lower)
Capitals = BeforeValidator(_upper)


def _alternatives(text: str) -> list[str]:
    """The URLs of a list that is separated by semicolons. A password may hold one too."""
    parts = [part.strip() for part in text.split(";")]
    return [part for part in parts if part] if all("://" in part for part in parts if part) else [text]


def _check_form(text: str, example: str) -> None:
    if text[:1] in "\"'" and text[-1:] == text[:1]:
        raise ValueError("stands in quotes that the program sees; remove them")
    if "://" not in text:
        raise ValueError(f"needs a scheme before the host, {example}")
    if re.search(r"[\s\x00-\x1f]", text):
        raise ValueError("holds a space; in a password, write it as %20")
    rest = text.partition("://")[2]
    end = re.search(r"[/?#]", rest)
    if rest.startswith("/"):
        return  # a path alone
    try:
        urlsplit(text)
    except ValueError:
        raise ValueError("has a host that is no address or name; write [ in a password as %5B") from None
    # urlsplit would take the rest of the password for a path, a query or a fragment.
    if "#" in rest or (end and "@" in rest[end.start() :]) or "[" in rest.rpartition("@")[0]:
        raise ValueError(f"holds a character that ends the host; percent-encode the password: {ENCODED}")


def _check_host(text: str, form: str) -> None:
    if not urlsplit(text).hostname:
        raise ValueError(f"names no host; write {form}")
    _check_port(text)


def _check_port(text: str) -> None:
    try:
        port = urlsplit(text).port
        usable = port is None or port > 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(
            "has a port that is not a number from 1 to 65535; if that is part of a password, percent-encode "
            f"the password: {ENCODED}"
        )


def _check_query(scheme: str, query: str) -> None:
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in ("password", "username"):
            raise ValueError(f"has a password behind the question mark; write {REDIS_FORM}")
        if name.startswith("ssl_") and scheme != "rediss":
            raise ValueError("has an option of TLS behind the question mark; write rediss:// to use TLS")
        if name not in REDIS_OPTIONS and not name.startswith("ssl_"):
            raise ValueError(
                f"has an unknown option behind the question mark; known are {', '.join(REDIS_OPTIONS)}"
            )
        if name == "db" and not value.isdecimal():
            raise ValueError("names a database that is not a number; write ?db=0")
        if name in TLS_FILES and not Path(value).is_file():
            raise ValueError(f"names a file in {name} that is not there")


def _check_transport(scheme: str) -> None:
    from kombu.transport import TRANSPORT_ALIASES, resolve_transport

    if scheme.partition("+")[0] not in TRANSPORT_ALIASES:
        raise ValueError(f"has a scheme that Celery does not know; write {REDIS_FORM} or amqp://…")
    try:
        resolve_transport(scheme.partition("+")[0])
    except Exception:
        # Some of kombu's modules fail in their own ways where their package is missing.
        raise ValueError(f"needs a package that is not installed: pip install 'celery[{scheme}]'") from None


def _as_kombu(text: str) -> str:
    parts = urlsplit(text)
    is_the_same = parts.scheme == "redis" and not parts.query and ";" not in text
    if is_the_same or parts.scheme not in REDIS_SCHEMES:
        return text
    options = dict(parse_qsl(parts.query))
    db = options.get("db") or (parts.path.strip("/") if parts.scheme != "unix" else "") or "0"
    user_info = ":".join(
        quote(unquote(part), safe="") for part in (parts.username or "", parts.password or "")
    )
    before = f"{user_info}@" if user_info != ":" else ""
    if parts.scheme == "unix":
        return f"redis+socket://{before}{parts.path}?virtual_host={db}"
    tls = {name: value for name, value in options.items() if name.startswith("ssl_")}
    if parts.scheme == "rediss":
        tls.setdefault("ssl_cert_reqs", "required")
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    query = f"?{urlencode(tls)}" if tls else ""
    return f"{parts.scheme}://{before}{host}:{parts.port or 6379}/{db}{query}"
