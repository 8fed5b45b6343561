"""The HTML of an evaluation's page, for Jinja."""

TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ data_set }}: vidpress evaluate</title>
<style>
  :root { --ink: #1f2328; --soft: #5b636d; --line: #d9dee3; --own: #a84300; --tint: #fdf3ec; }
  body { font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink); margin: 0 auto;
         max-width: 76rem; padding: 1.5rem; }
  h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; }
  h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
  p, li { max-width: 60rem; } .soft, caption, figcaption { color: var(--soft); font-size: .9rem; }
  ul.findings { padding: .8rem 1rem .8rem 2rem; background: var(--tint); border-left: 4px solid var(--own); }
  figure { margin: 1rem 0; } figure img { width: 100%; height: auto; } figure.small img { max-width: 44rem; }
  .scroll { overflow-x: auto; }
  table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
  caption { text-align: left; caption-side: bottom; padding-top: .4rem; max-width: 60rem; }
  th, td { padding: .28rem .55rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
  th { vertical-align: bottom; font-weight: 600; } thead th { border-bottom: 2px solid var(--ink); }
  th.text, td.text { text-align: left; } th.group { text-align: center; border-bottom: 1px solid var(--line); }
  tr.first td { border-top: 2px solid var(--line); } tr.own td { background: var(--tint); }
  tr.own td:first-child { font-weight: 600; color: var(--own); }
  pre { background: #f4f6f8; padding: .8rem 1rem; overflow-x: auto; white-space: pre-wrap; font-size: .85rem; }
  details { margin: .8rem 0; } summary { cursor: pointer; font-weight: 600; }
  details table { font-size: .78rem; } details th, details td { padding: .15rem .5rem; }
</style>
</head>
<body>
<h1>{{ data_set }}: how small, how accurate</h1>
<p class="soft">{{ num_examples(about.data.training) }} training {{ task.example }}s
({{ about.data.training.first_file }} to {{ about.data.training.last_file }}),
measured on {{ num_examples(about.data.validation) }} others
({{ about.data.validation.first_file }} to {{ about.data.validation.last_file }}).
{{ records | length }} of {{ about.points }} points are finished.</p>
{% if findings %}
<ul class="findings">
{% for finding in findings %}
  <li>{{ finding }}</li>
{% endfor %}
</ul>
{% endif %}
{% if images %}
<h2>Error over size</h2>
<figure>
<img alt="Error over relative size on a logarithmic axis, a curve for each method" src="{{ images.rate_accuracy }}">
<figcaption>Left and down is better. The dashed line is the baseline: the same network, trained without a rate, its
activations stored without loss. Bars and band: least and largest of the seeds. On the right, what the grey frame
on the left holds. Codecs are drawn with whichever head
got the better {{ task.metric_name }} on the validation {{ task.example }}s, in their favour. Points far above the
baseline's error are left out; all are in the table below.</figcaption>
</figure>
{% endif %}
{% for hidden, rows in tables %}
<h2>{{ title(hidden) }}</h2>
<div class="scroll">
<table>
<thead>
<tr><th class="text" rowspan="2">Method</th><th class="text" rowspan="2">Setting</th>
<th class="text" rowspan="2">Head</th>
{% for error in task.errors %}<th class="group" colspan="2">Error, 1 - {{ error.name }}, %</th>{% endfor %}
<th rowspan="2">Bytes<br>{{ task.a_example }}</th><th rowspan="2">Relative<br>size</th>
<th rowspan="2">No worse<br>than the<br>baseline</th>
<th rowspan="2">Bytes at<br>the base-<br>line's<br>{{ task.metric_name }}</th><th rowspan="2">Seeds</th></tr>
<tr>{% for error in task.errors %}<th>training</th><th>validation</th>{% endfor %}</tr>
</thead>
<tbody>
{% for row in rows %}
<tr class="{{ row.kind }}{% if not loop.first and row.kind != loop.previtem.kind %} first{% endif %}">
<td class="text">{{ row.name }}</td><td class="text">{{ row.point.setting }}</td><td class="text">{{ row.head }}</td>
{% for error in task.errors %}
<td>{{ row.point.training[error.metric] | error }}</td><td>{{ row.point.validation[error.metric] | error }}</td>
{% endfor %}
<td>{{ row.point.num_bytes | size }}</td><td>{{ row.point.relative_size | share }}</td>
<td>{{ "" if row.kind == "baseline" else "yes" if row.holds else "no" }}</td>
<td>{% if row.at_baseline %}{{ row.at_baseline | size }}{% endif %}</td>
<td>{{ row.point.records | length }}</td></tr>
{% endfor %}
</tbody>
<caption>Of each method, the smallest setting whose {{ task.metric_name }} is no worse than the baseline's; where none
is, the one with the best {{ task.metric_name }}. What stores a seed's activations is compared with the baseline of
that seed. Bytes at the baseline's {{ task.metric_name }} lie between the
settings, where the curve crosses the baseline's.</caption>
</table>
</div>
{% endfor %}
{% if all_in_rows %}
<h2>All bytes of a shard</h2>
<p>What a shard takes in all, besides ids and labels: codes, banks, lengths, checksums and the footer. Where the tables
would take more than 1 % of the codes, shards share a file of tables instead, which a data set has once.</p>
<div class="scroll">
<table>
<thead>
<tr><th class="text" rowspan="2">Method</th><th class="text" rowspan="2">Setting</th>
<th rowspan="2">Codes<br>and banks</th>
<th class="group" colspan="{{ shard_sizes | length }}">All bytes a video, by videos in a shard</th>
<th rowspan="2">Tables,<br>bytes</th></tr>
<tr>{% for size in shard_sizes %}<th>{{ "{:,}".format(size | int) }}</th>{% endfor %}</tr>
</thead>
<tbody>
{% for name, point in all_in_rows %}
<tr><td class="text">{{ name }}</td><td class="text">{{ point.setting }}</td><td>{{ point.num_bytes | size }}</td>
{% for size in shard_sizes %}
<td>{% set value = point.all_in_bytes(size) %}{{ "" if value is none else value | size }}</td>
{% endfor %}
<td>{{ "{:,}".format(point.records[0].tables_bytes) }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
{% endif %}
{% if new_task_tables %}
<h2>New tasks</h2>
<p>{{ "{:,}".format(about.new_tasks.classes) }} classes
{{ "of another vocabulary." if about.new_tasks.held_out is none else "whose labels no network and no table has seen." }}
Heads for them are trained on what is stored of each video, as it is read back: a linear one, and one with a hidden
layer of 2000. The training is the same in every row.</p>
{% if "new_tasks" in images %}
<figure>
<img alt="Accuracy of linear heads for new tasks over bytes on a logarithmic axis" src="{{ images.new_tasks }}">
<figcaption>Left and up is better. The dashed lines are the same head on what takes thousands of bytes. Bars: least and
largest of the seeds. On the right, what the grey frame on the left holds.</figcaption>
</figure>
{% endif %}
{% for hidden, rows in new_task_tables %}
<h3>{{ title(hidden) }}</h3>
<div class="scroll">
<table>
<thead>
<tr><th class="text" rowspan="2">What is stored</th><th class="text" rowspan="2">Setting</th>
<th rowspan="2">Bytes<br>a video</th><th class="group" colspan="4">Linear head</th>
<th class="group" colspan="4">its mAP by quarter of the classes,<br>the most frequent first</th>
<th class="group" colspan="4">Head with a hidden layer</th><th rowspan="2">Seeds</th></tr>
<tr><th>GAP</th><th>Hit@1</th><th>PERR</th><th>mAP</th><th>1</th><th>2</th><th>3</th><th>4</th>
<th>GAP</th><th>Hit@1</th><th>PERR</th><th>mAP</th></tr>
</thead>
<tbody>
{% for name, kind, point in rows %}
<tr class="{{ kind }}{% if not loop.first and kind != loop.previtem[1] %} first{% endif %}">
<td class="text">{{ name }}</td><td class="text">{{ point.setting }}</td><td>{{ point.num_bytes | size }}</td>
{% for metric in task.metrics %}
<td>{{ point.on_new_tasks("linear", metric) | mean4 }}<br><span class="soft">
{{ point.new_task_interval("linear", metric) | interval }}</span></td>
{% endfor %}
{% for value in point.new_task_quartiles("linear") %}<td>{{ [value] | mean4 }}</td>{% endfor %}
{% for metric in task.metrics %}
<td>{{ point.on_new_tasks("hidden", metric) | mean4 }}<br><span class="soft">
{{ point.new_task_interval("hidden", metric) | interval }}</span></td>
{% endfor %}
<td>{{ point.records | length }}</td></tr>
{% endfor %}
</tbody>
<caption>Means over the seeds; below each, the interval that holds 95 % of bootstrap samples of the videos.</caption>
</table>
</div>
{% endfor %}
{% endif %}
{% if images %}
<h2>Bits by dimension</h2>
<figure class="small"><img alt="Bits of each dimension, sorted" src="{{ images.bits_by_dimension }}">
<figcaption>Of all networks with the &lambda; that most methods have, under the tables that the range coder
uses.</figcaption></figure>
{% endif %}
<h2>What the methods are</h2>
<ul>
<li><b>{{ about.methods | join(", ") }}</b>: networks trained with a rate. The validation {{ task.example }}s are
{{ task.coding }}:
bytes are the codes and the bits that tell the bank, accuracy is that of the decoded features.
{% if "paper" in about.methods %}
<b>paper</b> is the paper's method as it stands.
{% endif %}
</li>
{% if rivals %}
<li>The paper's baselines, on the baseline's activations, read by the baseline's head:
<ul>
{% for rival in rivals if rival.paper %}
<li><b>{{ rival.title }}</b>: {{ rival.text }}</li>
{% endfor %}
</ul></li>
<li>What users would pick, on the same activations{{ " and on the input features" if task.rivals_on_input }}:
<ul>
{% for rival in rivals if not rival.paper %}
<li><b>{{ rival.title }}</b>: {{ rival.text }}</li>
{% endfor %}
</ul>
{{ task.rival_heads }}
</li>
{% endif %}
<li>
{{ task.source_of_metrics }}
The training error is that of at most 10,000 training {{ task.example }}s at even distances.</li>
</ul>
<h2>How it was made</h2>
<pre>{{ about.command }}</pre>
<p>On: {{ about.machine.splitlines() | join("; ") }}. Points at a time: {{ about.jobs }}.</p>
<div class="scroll">
<table>
<thead><tr><th class="text">Part</th><th>Points</th><th>Training, s</th><th>Measuring, s</th></tr></thead>
<tbody>
{% for part, count, training, rest in parts %}
<tr><td class="text">{{ part }}</td><td>{{ count }}</td><td>{{ "{:,.0f}".format(training) }}</td>
<td>{{ "{:,.0f}".format(rest) }}</td></tr>
{% endfor %}
<tr><td class="text"><b>All</b></td><td>{{ parts | sum(attribute=1) }}</td>
<td>{{ "{:,.0f}".format(parts | sum(attribute=2)) }}</td><td>{{ "{:,.0f}".format(parts | sum(attribute=3)) }}</td></tr>
</tbody>
</table>
</div>
<details><summary>Training options of each method</summary>
<pre>
{% for text in options %}
{{ text }}
{% endfor %}
</pre>
</details>
{% if rows %}
<details><summary>All {{ rows | length }} points</summary>
<div class="scroll"><table>
<thead><tr>{% for name in rows[0] if name != "name" %}<th>{{ name | replace("_", " ") }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}
<tr>{% for name, value in row.items() if name != "name" %}<td>{{ "" if value is none else value }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
</details>
{% endif %}
</body>
</html>
"""
