// Live figures: differences of Prometheus' counters, of one process, over the last minute.

const WINDOW_S = 60;

export class Figures {
  samples = [];

  clear() {
    this.samples = [];
  }

  add(text, now) {
    const last = { at: now, ...parsed(text) };
    // Counters begin again with each process: behind a balancer the replicas take turns. Where a process does not say
    // which one it is, a counter that fell does.
    this.samples = this.samples.filter((one) => now - one.at <= WINDOW_S && (one.process !== last.process || !fell(one, last)));
    this.samples.push(last);
  }

  // Of the process that answered last; null while there is nothing to compare with.
  rows() {
    const last = this.samples.at(-1);
    const first = this.samples.find((one) => one.process === last?.process);
    if (!last || first === last) return null;
    const count = (source) => (last.slates[source] ?? 0) - (first.slates[source] ?? 0);
    const ms = (q) => {
      const value = quantile(first, last, q);
      return value === null ? "–" : `${(value * 1000).toFixed(1)} ms`;
    };
    const runs = last.batches[1] - first.batches[1];
    return [["slates a second", ((count("model") + count("popular")) / (last.at - first.at)).toFixed(1)], ["by the model", count("model")], ["popular", count("popular")], ["p50", ms(0.5)], ["p99", ms(0.99)], ["requests a run", runs ? ((last.batches[0] - first.batches[0]) / runs).toFixed(1) : "–"], ["waiting", last.queue]];
  }
}

function parsed(text) {
  const found = { slates: {}, buckets: {}, batches: [0, 0], queue: 0, process: "" };
  for (const line of text.split("\n")) {
    const match = /^(\w+)(?:\{([^}]*)\})? (\S+)$/.exec(line);
    if (!match) continue;
    const [, name, labels = "", value] = match;
    const label = (key) => new RegExp(`(?:^|,)${key}="([^"]*)"`).exec(labels)?.[1];
    if (name === "oneslate_slates_total") found.slates[label("source")] = (found.slates[label("source")] ?? 0) + Number(value);
    else if (name === "oneslate_recommend_stage_seconds_bucket" && label("stage") === "total") found.buckets[label("le")] = Number(value);
    else if (name === "oneslate_recommend_stage_seconds_created" && label("stage") === "total") found.process = value;
    else if (name === "oneslate_batch_size_requests_sum") found.batches[0] = Number(value);
    else if (name === "oneslate_batch_size_requests_count") found.batches[1] = Number(value);
    else if (name === "oneslate_queue_depth_requests") found.queue = Number(value);
  }
  return found;
}

function fell(before, after) {
  const counters = ({ slates, buckets, batches: [sum, runs] }) => ({ ...slates, ...buckets, sum, runs });
  const now = counters(after);
  return Object.entries(counters(before)).some(([name, value]) => value > (now[name] ?? 0));
}

function quantile(first, last, q) {
  const edges = Object.keys(last.buckets).filter((edge) => edge !== "+Inf").map(Number).sort((one, other) => one - other);
  const count = (edge) => (last.buckets[edge] ?? 0) - (first.buckets[edge] ?? 0);
  const label = (edge) => Object.keys(last.buckets).find((key) => Number(key) === edge);
  const total = count("+Inf");
  if (!total) return null;
  let below = 0;
  let from = 0;
  for (const edge of edges) {
    const upTo = count(label(edge));
    if (upTo >= q * total) return from + ((edge - from) * (q * total - below)) / Math.max(1e-9, upTo - below);
    below = upTo;
    from = edge;
  }
  return edges.at(-1);
}
