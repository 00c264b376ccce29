"""The kinds of panels that the dashboards are made of: one data source, one look, stable ids."""

from collections.abc import Sequence
from string import ascii_uppercase
from typing import NamedTuple

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as board
from grafana_foundation_sdk.models.common import (
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    StackingMode,
)
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DashboardCursorSync,
    DataSourceRef,
    DataTransformerConfig,
    VariableOption,
    VariableRefresh,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
SELECTED = 'job="$job",instance=~"$instance"'
"""Matchers of the series that the two variables at the top of a dashboard pick."""


class Query(NamedTuple):
    """A PromQL expression and what its series are called."""

    expr: str
    legend: str


def rate(counter: str, by: str = "", matchers: str = "") -> str:
    """Per-second rate of a counter over all selected instances."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({counter}{{{_join(matchers)}}}[$__rate_interval]))"


def share(counter: str, by: str, matchers: str = "") -> str:
    """What fraction of a counter's growth each value of the label `by` has."""
    part, whole = rate(counter, by, matchers), rate(counter)
    return f"{part} / ignoring ({by}) group_left {whole}"


def mean(histogram: str, window: str = "$__rate_interval", offset: str = "") -> str:
    """Mean of what a histogram observed."""
    shift = f" offset {offset}" if offset else ""
    total, number = (
        f"sum (rate({histogram}_{part}{{{SELECTED}}}[{window}]{shift}))"
        for part in ("sum", "count")
    )
    return f"{total} / {number}"


def quantile(level: float, histogram: str) -> str:
    """A quantile of what a histogram observed."""
    return f"histogram_quantile({level}, {rate(f'{histogram}_bucket', 'le')})"


def quantiles(histogram: str) -> list[Query]:
    """Median and tail of a histogram."""
    return [Query(quantile(level, histogram), f"p{level:.0%}"[:-1]) for level in (0.5, 0.95, 0.99)]


def lines(
    title: str,
    description: str,
    unit: str,
    queries: Sequence[Query],
    *,
    stacked: bool = False,
    top: float | None = None,
    width: int = 12,
    exemplars: bool = False,
    logarithmic: bool = False,
) -> timeseries.Panel:
    """Series over time; `top` fixes the upper end of the axis, `exemplars` adds single requests."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .datasource(SOURCE)
        .fill_opacity(30 if stacked else 0)
        .stacking(
            common.StackingConfig().mode(StackingMode.NORMAL if stacked else StackingMode.NONE)
        )
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .span(width)
        .height(8)
    )
    if logarithmic:  # has no zero to start from
        scale = common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10)
        panel.scale_distribution(scale)
    else:
        panel.min(0)
    if top is not None:
        panel.max(top)
    for target in _targets(queries):
        panel.with_target(target.exemplar(True) if exemplars else target)
    return panel


def heat(title: str, description: str, unit: str, histogram: str) -> heatmap.Panel:
    """How a histogram's observations are spread over its buckets, over time."""
    expr = f"sum by (le) (increase({histogram}_bucket{{{SELECTED}}}[$__rate_interval]))"
    (target,) = _targets([Query(expr, "{{le}}")])
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .unit("short")
        .datasource(SOURCE)
        .calculate(False)
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .color(
            heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(64)
        )
        .span(12)
        .height(9)
        .with_target(target.format(PromQueryFormat.HEATMAP))
    )


def number(title: str, description: str, unit: str, expr: str, width: int = 6) -> stat.Panel:
    """One number, as of now."""
    (target,) = _targets([Query(expr, title)])
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .datasource(SOURCE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .span(width)
        .height(4)
        .with_target(target)
    )


def labels_of(title: str, description: str, info: str, columns: str) -> table.Panel:
    """The labels of an info series, a row for each combination that runs."""
    expr = f"count by ({columns}) ({info}{{{SELECTED}}})"
    (target,) = _targets([Query(expr, "")])
    return (
        table.Panel()
        .title(title)
        .description(description)
        .unit("short")
        .datasource(SOURCE)
        .span(24)
        .height(4)
        .with_target(target.format(PromQueryFormat.TABLE).instant())
        .with_transformation(
            DataTransformerConfig(
                id_val="organize",
                options={"excludeByName": {"Time": True}, "renameByName": {"Value": "instances"}},
            )
        )
    )


def new_dashboard(title: str, uid: str, description: str) -> board.Dashboard:
    """An empty dashboard that can be pointed at a data source, a job and instances."""
    return (
        board.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["dalorra"])
        .readonly()
        .refresh("30s")
        .time("now-6h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(
            board.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
        .with_variable(_label_variable("job", "label_values(dalorra_ready, job)"))
        .with_variable(
            _label_variable("instance", 'label_values(dalorra_ready{job="$job"}, instance)')
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(VariableOption(text="All", value="$__all"))
        )
    )


def with_adapters(dashboard: board.Dashboard) -> board.Dashboard:
    """Adds the choice of adapters; `of_adapters` makes the panels follow it."""
    return dashboard.with_variable(
        _label_variable("adapter", 'label_values(dalorra_adapter_info{job="$job"}, adapter)')
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(text="All", value="$__all"))
    )


def of_adapters(dashboard: Dashboard) -> Dashboard:
    """The same dashboard, every query narrowed to the chosen adapters."""
    for panel in dashboard.panels or []:
        for target in getattr(panel, "targets", None) or []:
            target.expr = target.expr.replace(SELECTED, f'{SELECTED},adapter=~"$adapter"')
    return dashboard


def numbered(dashboard: Dashboard) -> Dashboard:
    """The same dashboard, its panels with ids: links to them and alerts on them need one."""
    for id_val, panel in enumerate(dashboard.panels or [], start=1):
        panel.id_val = id_val
    return dashboard


def _label_variable(name: str, query: str) -> board.QueryVariable:
    return (
        board.QueryVariable(name)
        .label(name.capitalize())
        .query(query)
        .datasource(SOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    )


def _targets(queries: Sequence[Query]) -> list[prometheus.Dataquery]:
    return [
        prometheus.Dataquery().ref_id(ref_id).expr(query.expr).legend_format(query.legend)
        for ref_id, query in zip(ascii_uppercase, queries, strict=False)
    ]


def _join(matchers: str) -> str:
    return f"{SELECTED},{matchers}" if matchers else SELECTED
