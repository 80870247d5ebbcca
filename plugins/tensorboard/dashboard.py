"""The routes of the HEAD DYNAMICS tab: which runs there are, what the panels show of one, and the page's own files."""

from __future__ import annotations

import json
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headdynamics.analysis.assets import WEB, plotly_script
from headdynamics.analysis.panels import panels
from headdynamics.plugins.tensorboard.reading import read, versions
from tensorboard import plugin_util
from tensorboard.backend.http_util import Respond
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from headdynamics.schema import RunFileError
from headdynamics.tags import PLUGIN

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication as App

KEPT = 32  # runs whose panels are remembered


class Dashboard(base_plugin.TBPlugin):
    """TensorBoard asks for `get_plugin_apps` once and serves them below `data/plugin/headdynamics`."""

    plugin_name = PLUGIN

    def __init__(self, context: base_plugin.TBContext) -> None:
        self._provider = context.data_provider
        self._lock = threading.Lock()
        self._panels: dict[tuple[str, str], tuple[str, str]] = {}  # (experiment, run) -> (version, JSON)
        self._files = {
            "tab.js": (Path(__file__).with_name("tab.js"), "text/javascript"),
            "panels.js": (WEB / "panels.js", "text/javascript"),
            "panels.css": (WEB / "panels.css", "text/css"),
            "plotly.min.js": (plotly_script(), "text/javascript"),
        }

    def get_plugin_apps(self) -> dict[str, App]:
        """Route -> what answers it; the page's files are a table, so that no request names a path."""
        answers = {"/runs": self._list, "/panels": self._show}
        answers |= {f"/static/{name}": partial(_file, *file) for name, file in self._files.items()}
        return {route: wrappers.Request.application(answer) for route, answer in answers.items()}

    def is_active(self) -> bool:
        """The data provider knows better: TensorBoard asks it for the plugins that have data."""
        return False

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """The tab's name and its module."""
        return base_plugin.FrontendMetadata(es_module_path="/static/tab.js", tab_name="Head Dynamics")

    def _list(self, request: wrappers.Request) -> wrappers.Response:
        context, experiment = _asked(request)
        return _json(request, json.dumps({"runs": versions(self._provider, context, experiment)}))

    def _show(self, request: wrappers.Request) -> wrappers.Response:
        context, experiment = _asked(request)
        name = request.args.get("run", "")
        try:
            return _json(request, self._panels_of(context, experiment, name))
        except RunFileError as error:
            return _json(request, json.dumps({"error": str(error)}), 404)

    def _panels_of(self, context: Any, experiment: str, name: str) -> str:
        """JSON; made again only after something was written, and once for all who ask meanwhile."""
        with self._lock:
            version = versions(self._provider, context, experiment).get(name, "")
            known, found = self._panels.pop((experiment, name), ("", ""))
            if known != version or not found:
                found = json.dumps(panels(read(self._provider, context, experiment, name)), allow_nan=False)
            self._panels[experiment, name] = version, found
            for oldest in list(self._panels)[:-KEPT]:
                del self._panels[oldest]
        return found


def _file(path: Path, kind: str, request: wrappers.Request) -> wrappers.Response:
    return Respond(request, path.read_bytes(), kind)


def _asked(request: wrappers.Request) -> tuple[Any, str]:
    return plugin_util.context(request.environ), plugin_util.experiment_id(request.environ)


def _json(request: wrappers.Request, text: str, code: int = 200) -> wrappers.Response:
    return Respond(request, text, "application/json", code=code)
