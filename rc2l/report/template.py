# ruff: noqa: E501
"""The page of a report as a Jinja template; everything that it is given is escaped."""

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 15px/1.45 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #1b1f24; margin: 0 auto;
  max-width: 1180px; padding: 0 20px 60px; }
h1 { font-size: 26px; margin: 28px 0 4px; } h2 { font-size: 20px; margin: 40px 0 10px; border-bottom: 1px solid #d0d7de; }
h3 { font-size: 16px; margin: 22px 0 8px; } nav a { margin-right: 14px; } a { color: #0b5cad; text-decoration: none; }
table { border-collapse: collapse; margin: 8px 0; } th { text-align: left; background: #f3f5f7; position: sticky; top: 0; }
th, td { padding: 3px 10px; border: 1px solid #dde2e7; vertical-align: top; overflow-wrap: anywhere; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.bar { min-width: 110px; text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.wide { overflow-x: auto; } img { max-width: 100%; height: auto; } figure { margin: 10px 0 18px; }
figcaption, .quiet { color: #57606a; font-size: 13px; } code { font-size: 13px; } summary { cursor: pointer; padding: 4px 0; }
.pair { display: grid; grid-template-columns: repeat(auto-fill, minmax(420px, 1fr)); gap: 0 18px; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="quiet">rc2l {{ version }}. mIoU in percent{% if several_seeds %}; mean ± standard deviation over seeds{% endif %}.</p>
<nav>{% for anchor, name in sections %}<a href="#{{ anchor }}">{{ name }}</a>{% endfor %}</nav>

<h2 id="summary">Summary</h2>
<div class="wide"><table>
<tr><th>run</th><th>seed</th><th>mIoU, last</th><th>mIoU, best</th>{% if several_seeds %}<th>each, last</th>{% endif %}
<th>iterations</th></tr>
{% for row in summary %}<tr><td title="{{ row.folders | join(', ') }}">{{ row.name }}</td><td>{{ row.seeds }}</td>
<td class="n">{{ row.last or "not evaluated" }}</td><td class="n">{{ row.best }}</td>
{% if several_seeds %}<td class="n">{{ row.each }}</td>{% endif %}<td class="n">{{ row.done }}</td></tr>
{% endfor %}</table></div>

<h2 id="settings">Settings</h2>
{% if differences %}<h3>In which the runs differ</h3>
<div class="wide"><table><tr><th>key</th>{% for row in summary %}<th>{{ row.name }}</th>{% endfor %}</tr>
{% for row in differences %}<tr><td><code>{{ row.key }}</code></td>
{% for value in row["values"] %}<td><code>{{ value }}</code></td>{% endfor %}</tr>
{% endfor %}</table></div>{% endif %}
{% for group in settings %}<details>
<summary>{{ group.rows | length }} settings that differ from the defaults: {{ group.name }}</summary>
<div class="wide"><table><tr><th>key</th><th>value</th><th>default</th></tr>
{% for row in group.rows %}<tr><td><code>{{ row.key }}</code></td><td><code>{{ row.value }}</code></td>
<td class="quiet"><code>{{ row.default }}</code></td></tr>
{% endfor %}</table></div></details>
{% endfor %}

{% if curves %}<h2 id="curves">Curves</h2>
{% for figure in curves %}<h3>{{ figure.title }}</h3><figure><img src="{{ figure.image }}" alt="{{ figure.title }}"></figure>
{% endfor %}{% endif %}

{% if pseudo %}<h2 id="pseudo">Pseudo labels</h2>
{% for figure in pseudo %}<h3>{{ figure.title }}</h3><figure><img src="{{ figure.image }}" alt="{{ figure.title }}"></figure>
{% endfor %}{% endif %}

{% if classes %}<h2 id="classes">Classes</h2>
<p class="quiet">IoU in percent; {{ classes.source }}. n/a: neither in the truth nor predicted.</p>
<div class="wide"><table><tr><th>class</th><th>pixels</th><th>% of pixels</th>
{% for row in summary %}<th>{{ row.name }}</th>{% endfor %}</tr>
{% for row in classes.rows %}<tr><td>{{ row.name }}</td><td class="n">{{ row.pixels }}</td><td class="n">{{ row.share }}</td>
{% for cell in row.cells %}<td class="bar" style="background: linear-gradient(90deg, #cfe3f5 {{ cell.width }}%, transparent {{ cell.width }}%)">{{ cell.text }}</td>
{% endfor %}</tr>
{% endfor %}{% for row in classes.totals %}<tr><th>{{ row.name }}</th><th></th><th></th>
{% for cell in row.cells %}<td class="n">{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>{% endif %}

{% if confusions %}<h2 id="confusion">Confusion</h2>
{% for group in confusions %}{% if confusions | length > 1 %}<h3>{{ group.name }}</h3>{% endif %}
<figure><img src="{{ group.image }}" alt="confusion matrix of {{ group.name }}"></figure>
{% if group.pairs %}<div class="wide"><table><tr><th>truth</th><th>taken for</th><th>% of the class</th><th>% of all errors</th></tr>
{% for pair in group.pairs %}<tr><td>{{ pair.truth }}</td><td>{{ pair.prediction }}</td><td class="n">{{ pair.of_class }}</td>
<td class="n">{{ pair.of_errors }}</td></tr>
{% endfor %}</table></div>{% endif %}{% endfor %}{% endif %}

{% if images %}<h2 id="images">Images</h2>
{% for group in images %}{% if images | length > 1 %}<h3>{{ group.name }}</h3>{% endif %}
{% for end in group.ends %}<h3>{{ end.title }}</h3><div class="pair">
{% for picture in end.pictures %}<figure><img src="{{ picture.image }}" alt="{{ picture.caption }}">
<figcaption>{{ picture.caption }}</figcaption></figure>
{% endfor %}</div>{% endfor %}
{% if group.scores %}<details><summary>Lowest scores of single images</summary>
<table><tr><th>image</th><th>mIoU</th><th>pixel accuracy</th></tr>
{% for row in group.scores %}<tr><td>{{ row.image_id }}</td><td class="n">{{ row.mIoU }}</td><td class="n">{{ row.pixel_accuracy }}</td></tr>
{% endfor %}</table></details>{% endif %}
{% if group.training %}<h3>While training</h3>
{% for picture in group.training %}<figure><figcaption>{{ picture.caption }}</figcaption>
<img src="{{ picture.image }}" alt="{{ picture.caption }}"></figure>
{% endfor %}{% endif %}{% endfor %}{% endif %}

<h2 id="cost">Cost</h2>
<div class="wide"><table><tr><th>run</th><th>device</th><th>training steps</th><th>a step</th><th>images a second</th>
<th>waiting for data</th><th>peak memory</th><th>from start to end of the log</th></tr>
{% for row in cost %}<tr><td title="{{ row.folder }}">{{ row.folder }}</td><td>{{ row.device }}</td><td class="n">{{ row.steps }}</td>
<td class="n">{{ row.per_step }}</td><td class="n">{{ row.images }}</td><td class="n">{{ row.waiting }}</td>
<td class="n">{{ row.memory }}</td><td class="n">{{ row.wall_clock }}</td></tr>
{% endfor %}</table></div>
<p class="quiet">Training steps are without evaluations and checkpoints; the log's time has all, and breaks of a run that was
continued. Memory is the GPU's, or that of the main process where there is none.</p>
</body>
</html>
"""
