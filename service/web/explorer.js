// The explorer: what a user saw, what comes next, and why. Talks to the same API as everybody, and to nobody else.

import { Refused, api, encoded, forgetItem, forgetItems, isKey, item, session, useKey } from "./api.js";
import { Figures } from "./live.js";
import { $, Turns, fill, h, say } from "./page.js";

const REASONS = {
  model_unavailable: "The model does not answer: these are popular items.",
  deadline: "Out of time: these are popular items.",
  history_unavailable: "The history store does not answer: the model knew nothing of this user.",
  stale_history: "The history store does not answer: made from a copy of the history that is up to a minute old.",
  unknown_continuation: "What was shown before is not known any more: it may come again.",
  too_few_items: "No more items are left under these conditions.",
  not_explained: "There was no time to explain this slate.",
  cold_start: "This user has no history yet.",
};
const MAX_HISTORY = 100;
const LIVE_MS = 2000;
const LOOK_MS = 4000;
const MODELS_MS = 10000;
const state = { user: "", version: null, models: [], users: null, history: [], columns: [], trouble: "", unexplained: new Set() };
const turns = { history: new Turns(), why: new Turns(), item: new Turns(), start: new Turns() };

const nameOf = (found) => (found === null ? "an item that is gone" : found.title || found.item_id);
// Titles and ids may run from right to left: what stands beside them keeps its order.
const apart = (text) => h("bdi", {}, text);
const named = (found) => apart(nameOf(found));
const between = (parts) => parts.filter(Boolean).flatMap((part, index) => (index ? [" · ", apart(part)] : [apart(part)]));

// Titles that could not be looked up are said to be missing: ids alone look as if there were none.
const untitled = (found) => {
  const lost = found.filter((one) => one?.trouble);
  return lost.length ? `titles of ${lost.length} items are not loaded: ${lost[0].trouble}` : null;
};

function askKey(trouble = "") {
  if (!$("key-dialog").open) $("key-dialog").showModal();
  say($("key-trouble"), trouble, true);
}

// Another key may reach other users and items: nothing that the one before brought stays.
function useAnotherKey(key) {
  useKey(key);
  forgetItems();
  sessionStorage.removeItem("users");
  Object.assign(state, { user: "", users: null, history: [] });
  turns.history.begin();
  $("why").close();
  $("user").value = "";
  for (const list of ["users", "some-users", "history"]) fill($(list));
  $("history").removeAttribute("aria-busy");
  say($("history-note"), "");
  for (const column of state.columns) column.clear();
  began();
}

// --- user and history ---

function remember(user) {
  const users = [user, ...JSON.parse(sessionStorage.getItem("users") ?? "[]").filter((other) => other !== user)].slice(0, 8);
  sessionStorage.setItem("users", JSON.stringify(users));
}

async function someUsers() {
  const recent = JSON.parse(sessionStorage.getItem("users") ?? "[]");
  let stored = [];
  try {
    stored = (await api("GET", "v1/users?limit=12")).user_ids;
    state.users = stored;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    state.users = error.status === 401 || error.status === 403 ? [] : null; // a key for slates alone may not list users
  }
  const users = [...new Set([...recent, ...stored])].slice(0, 12);
  fill($("users"), ...users.map((user) => h("option", { value: user })));
  fill($("some-users"), ...users.map((user) => h("button", { type: "button", title: user, onclick: () => show(user) }, apart(user))));
  return users;
}

function ago(timestamp) {
  const seconds = Math.max(0, Date.now() / 1000 - timestamp);
  for (const [name, length] of [["year", 31557600], ["month", 2629800], ["day", 86400], ["hour", 3600], ["minute", 60]]) {
    const count = Math.floor(seconds / length);
    if (count >= 1) return `${count} ${name}${count > 1 ? "s" : ""} ago`;
  }
  return "just now";
}

function busy(note, list, text) {
  list.setAttribute("aria-busy", "true");
  say(note, text);
}

async function showHistory() {
  const isNewest = turns.history.begin();
  const { user } = state;
  busy($("history-note"), $("history"), "Asking for the history…");
  state.isForbidden = false; // to this key
  let history;
  let events = [];
  try {
    history = await api("GET", `v1/users/${encoded(user)}/history`);
    events = await Promise.all(history.events.slice(-MAX_HISTORY).reverse().map(async (event) => ({ ...event, item: await item(event.item_id) })));
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (isNewest()) {
      say($("history-note"), error.message, true);
      state.isForbidden = error.status === 403 && (error.problem.errors ?? []).some((one) => one.pointer === "user_id");
    }
  }
  if (!isNewest()) return;
  state.history = events;
  fill($("history"), ...events.map((event) => h("li", {},
    h("strong", {}, named(event.item)), h("br"),
    h("span", { class: "what" }, [event.action, event.value === null ? null : `value ${event.value}`, ago(event.timestamp)].filter(Boolean).join(" · ")))));
  $("history").removeAttribute("aria-busy");
  if (!history) return;
  const count = history.events.length;
  const trouble = untitled(events.map((event) => event.item));
  say($("history-note"), count === 0 ? "Nothing is known of this user." : `${count} events${count > MAX_HISTORY ? `, the last ${MAX_HISTORY} here` : ""}, newest first; ${history.num_seen} items count as seen${trouble ? `; ${trouble}` : "."}`);
}

async function show(user) {
  if (user !== state.user) {
    state.user = user;
    state.history = [];
    fill($("history"));
    for (const column of state.columns) column.clear();
  }
  $("user").value = user;
  remember(user);
  await Promise.all([showHistory(), askAll()]);
}

// What a column is refused stands in its note.
async function askAll(columns = state.columns, continueFrom = () => null) {
  for (const { status, reason } of await Promise.allSettled(columns.map((column) => column.ask(continueFrom(column))))) {
    if (status === "rejected" && !(reason instanceof Refused)) throw reason;
  }
}

// --- slates ---

class Column {
  constructor(letter) {
    this.letter = letter;
    this.last = null; // the slate that is shown, with its user and its items
    this.turns = new Turns();
    this.note = h("p", { class: "note", role: "status", tabindex: -1 });
    this.cards = h("ol", { class: "cards", "aria-label": `Slate ${letter}` });
    this.model = h("select", { id: `model-${letter}` });
    this.tags = h("input", { id: `tags-${letter}`, placeholder: "any" });
    this.size = h("input", { id: `size-${letter}`, type: "number", min: 1, value: 5 });
    this.diversity = h("input", { id: `diversity-${letter}`, type: "number", min: 0, max: 100, step: 0.1, value: 0 });
    this.beams = h("input", { id: `beams-${letter}`, type: "number", min: 1, placeholder: "auto" });
    const field = (name, input) => h("div", {}, h("label", { for: input.id }, name), input);
    this.element = h("div", { class: "column" },
      h("fieldset", {}, h("legend", {}, `Conditions ${letter}`), field("Model", this.model), field("Only these tags", this.tags), field("Items", this.size), field("Diversity", this.diversity), field("Beams", this.beams)),
      this.note, this.cards);
    this.element.addEventListener("change", () => askAll([this]));
  }

  offer(models, { slate_size: slateSize, max_beam_width: mostBeams }) {
    const chosen = this.model.value;
    const isGone = chosen && !models.includes(chosen);
    const options = [["", "the user's"], ...models.map((version) => [version, version]), ...(isGone ? [[chosen, `${chosen} (not in service)`]] : [])];
    // Only when they differ: a list that is open would close.
    if (options.map(([, text]) => text).join("\n") !== [...this.model.options].map((option) => option.text).join("\n")) {
      fill(this.model, ...options.map(([value, text]) => h("option", { value, selected: value === chosen }, text)));
    }
    this.size.max = slateSize;
    this.beams.max = mostBeams;
    if (Number(this.size.value) > slateSize) this.size.value = slateSize;
  }

  query() {
    const tags = this.tags.value.split(",").map((tag) => tag.trim()).filter(Boolean);
    const body = { user_id: state.user, slate_size: Math.max(1, Number(this.size.value) || 1) };
    if (this.model.value) body.model_version = this.model.value;
    if (tags.length) body.filter = { any_of: tags };
    if (Number(this.beams.value) >= 1) body.beam_width = Number(this.beams.value);
    if (Number(this.diversity.value) > 0) body.diversity = Number(this.diversity.value);
    return body;
  }

  clear() {
    this.turns.begin();
    this.last = null;
    this.put();
    this.cards.removeAttribute("aria-busy");
    say(this.note, "");
    this.shown();
  }

  // Returns the slate, or null where something newer was asked meanwhile; throws what the service refused.
  async ask(continueFrom = null) {
    const isNewest = this.turns.begin();
    const { user } = state;
    if (!user) return null;
    busy(this.note, this.cards, "Asking for a slate…");
    let slate;
    let items;
    try {
      slate = await this.recommended(continueFrom);
      items = await Promise.all(slate.items.map((place) => item(place.item_id)));
    } catch (error) {
      if (!isNewest()) return null;
      this.clear();
      say(this.note, error.message, true);
      throw error;
    }
    if (!isNewest()) return null;
    this.last = { user, slate, items };
    this.show();
    return slate;
  }

  async recommended(continueFrom) {
    const model = this.model.value || this.last?.slate.model_version;
    const body = { ...this.query(), explain: !state.unexplained.has(model) };
    if (continueFrom) body.continue_from = continueFrom;
    try {
      return await api("POST", "v1/recommend", body);
    } catch (error) {
      if (!(error.status === 422 && error.problem.errors?.some((one) => one.pointer === "/explain"))) throw error;
      const slate = await api("POST", "v1/recommend", { ...body, explain: false });
      state.unexplained.add(slate.model_version); // exported without the graph that explains
      return slate;
    }
  }

  show() {
    const { slate, items } = this.last;
    const parts = [slate.source === "model" ? `model ${slate.model_version}` : "popular items", slate.beam_width ? `${slate.beam_width} beams` : null, `${slate.took_ms.total.toFixed(1)} ms`, slate.reason ? REASONS[slate.reason] ?? slate.reason : null, untitled(items)];
    say(this.note, parts.filter(Boolean).join(" · "));
    const shown = this.last;
    this.put(...slate.items.map((place, index) => {
      const found = items[index];
      return h("li", {}, h("button", { type: "button", class: "card", "aria-haspopup": "dialog", onclick: () => why(this, shown, index) },
        h("strong", {}, named(found)),
        h("span", { class: "note" }, ...between([found.title ? place.item_id : null, found.group, ...(found.tags ?? []).filter((tag) => tag !== found.group).slice(0, 4)]), h("span", { class: "only-here" }, " · only here")), h("br"),
        h("span", { class: "codes" }, `‹${place.sid.join(" ")}›  logprob ${place.score.toFixed(2)}`)));
    }));
    this.cards.removeAttribute("aria-busy");
    this.shown();
  }

  // Cards in the place of others; whoever was on one is on that at the same place, or else on the note.
  put(...cards) {
    const at = [...this.cards.children].findIndex((card) => card.contains(document.activeElement));
    fill(this.cards, ...cards);
    if (at >= 0) this.focus(at);
  }

  focus(index) {
    (this.cards.children[index]?.firstElementChild ?? this.note).focus();
  }

  // What is said beside the cards, and on those of the other column: they stay the same elements, which keep the focus.
  shown() {
    for (const column of state.columns) column.mark();
    $("next").disabled = !state.columns.some((column) => column.last);
    banner();
  }

  mark() {
    const others = state.columns.filter((column) => column !== this && column.last).map((column) => column.last.slate);
    const there = new Set(others.flatMap((slate) => slate.items.map((place) => place.item_id)));
    for (const [index, card] of this.cards.querySelectorAll(".card").entries()) {
      card.classList.toggle("only", others.length > 0 && !there.has(this.last.slate.items[index].item_id));
    }
  }
}

function banner() {
  const bad = state.columns.filter((column) => column.last?.slate.degraded).map((column) => column.last.slate.reason);
  const text = bad.length ? `Degraded: ${REASONS[bad[0]] ?? bad[0]}` : state.trouble;
  say($("banner"), text); // empty it has no height; hidden it would not be read out when it speaks
}

function setColumns(count) {
  while (state.columns.length > count) state.columns.pop().element.remove();
  while (state.columns.length < count) {
    const column = new Column("AB"[state.columns.length]);
    state.columns.push(column);
    $("columns").append(column.element);
    if (state.version) column.offer(state.models, state.version);
  }
  $("columns").classList.toggle("alone", count === 1);
}

// --- why ---

const share = (logprob) => Math.exp(Math.min(0, logprob));
const percent = (logprob) => {
  const value = share(logprob) * 100;
  return value >= 0.1 ? `${value.toFixed(1)} %` : "< 0.1 %";
};

function branch(code, logprob, isTaken, ...text) {
  return h("div", { class: isTaken ? "branch taken" : "branch" }, h("span", { class: "codes" }, `${isTaken ? "▸" : "·"} code ${code}`),
    h("span", { class: "bar", share: share(logprob) }, percent(logprob), ...(text.length ? [" — ", ...text] : [])));
}

async function tree(levels, found) {
  let inner = null;
  for (let level = levels.length - 1; level >= 0; level -= 1) {
    const { code, logprob, runner_ups: others } = levels[level];
    const known = await Promise.all(others.map(async (other) => ({ ...other, found: other.item_id ? await item(other.item_id) : null })));
    const isLast = level === levels.length - 1;
    inner = h("ul", { class: level === 0 ? "tree" : "" },
      h("li", {}, branch(code, logprob, true, isLast ? named(found) : "taken"), inner),
      ...known.map((other) => h("li", {}, branch(other.code, other.logprob, false, ...(other.found ? ["for example ", named(other.found)] : [])))));
  }
  return inner;
}

// Of the card that was clicked, whatever is asked and shown since.
async function why(column, shown, index) {
  const isNewest = turns.why.begin();
  const { slate } = shown;
  const { history } = state;
  const place = slate.items[index];
  const found = shown.items[index];
  fill($("why-title"), named(found), `, place ${index + 1}`);
  fill($("why-body"), h("p", { class: "note", role: "status" }, "Looking up what else was close…"));
  if (!$("why").open) $("why").showModal();
  $("why").onclose = () => column.focus(index); // the card that was clicked may be gone by then
  const explained = slate.explanation?.[index];
  const parts = [];
  if (found.text) parts.push(h("p", {}, found.text));
  const note = h("span", { class: "note", role: "status", id: "act-note" });
  const actions = h("div", { class: "row" }, ...(state.version?.actions ?? []).map((action) => h("button", { type: "button", class: "main", onclick: () => act(note, { user_id: shown.user, item_id: place.item_id, action, recommendation_id: slate.recommendation_id }) }, `Send “${action}”`)), note);
  parts.push(h("h3", {}, "What the user does with it"), actions);
  parts.push(h("h3", {}, "How it was written, code by code"));
  parts.push(explained ? await tree(explained.levels, found) : h("p", { class: "note" }, slate.source === "popular" ? "It is popular; no model wrote it." : "Not explained: this model has no graph for it, or there was no time."));
  const alike = history.map((event) => ({ ...event, shared: sharedCodes(event.item?.sid ?? [], place.sid) })).filter((event) => event.shared > 0)
    .sort((one, other) => other.shared - one.shared).filter((event, at, all) => all.findIndex((other) => other.item_id === event.item_id) === at).slice(0, 8);
  parts.push(h("h3", {}, "From the history, what shares its first codes"));
  parts.push(alike.length ? h("ul", { class: "plain" }, ...alike.map((event) => h("li", {}, named(event.item), " ", h("span", { class: "codes" }, `‹${event.item.sid.join(" ")}› ${event.shared} shared`)))) : h("p", { class: "note" }, "Nothing."));
  parts.push(h("h3", {}, "Where the time went"));
  parts.push(h("table", {}, h("tbody", {}, ...stages(slate.took_ms).map(([stage, ms]) => h("tr", {}, h("th", { scope: "row" }, stage), h("td", { class: "number" }, `${ms.toFixed(2)} ms`))))));
  if (isNewest()) fill($("why-body"), ...parts);
}

function stages({ total, ...parts }) {
  const rest = total - Object.values(parts).reduce((sum, ms) => sum + ms, 0);
  return [...Object.entries(parts), ["explanation and the rest", Math.max(0, rest)], ["total", total]];
}

function sharedCodes(one, other) {
  let count = 0;
  while (count < one.length && count < other.length && one[count] === other[count]) count += 1;
  return count;
}

async function act(note, what) {
  const event = { event_id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, ...what, timestamp: Date.now() / 1000 };
  try {
    const { results: [result] } = await api("POST", "v1/events", { events: [event] });
    say(note, result.status === "refused" ? result.problem.detail : `${result.status}; the slates are asked for again.`, result.status === "refused");
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    say(note, error.message, true);
    return;
  }
  if (what.user_id === state.user) await Promise.all([showHistory(), askAll()]);
}

// --- a new item ---

async function addItem(event) {
  event.preventDefault();
  const isNewest = turns.item.begin();
  const tell = (text, isBad = false) => isNewest() && say($("item-note"), text, isBad);
  const id = $("item-id").value;
  const tags = $("item-tags").value.split(",").map((tag) => tag.trim()).filter(Boolean);
  const body = { title: $("item-text").value };
  if (tags.length) body.tags = tags;
  fill($("item-similar"));
  try {
    const result = await api("PUT", `v1/items/${encoded(id)}`, body);
    forgetItem(id);
    const added = `${result.status}: semantic ID ‹${(result.sid ?? []).join(" ")}›.`;
    tell(`${added} It can be recommended within a second; looking for it…`);
    await new Promise((resolve) => setTimeout(resolve, 1000));
    const { items } = await api("GET", `v1/items/${encoded(id)}/similar?k=5`);
    const lines = await Promise.all(items.map(async (similar) => h("li", {}, "like ", named(await item(similar.item_id)), h("span", { class: "codes" }, ` ${similar.num_shared} codes shared`))));
    if (!isNewest()) return;
    fill($("item-similar"), ...lines);
    tell(`${added} ${await whereIs(id)}`);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    tell(error.message, true);
  }
}

async function whereIs(id) {
  if (!state.user) return "Choose a user to look for it in a slate.";
  const [column] = state.columns;
  const at = (slate) => slate.items.findIndex((one) => one.item_id === id) + 1;
  try {
    const slate = await column.ask();
    if (slate === null) return "Another slate was asked for meanwhile.";
    if (at(slate)) return `It is at place ${at(slate)} of this user's slate.`;
    const { tags } = await item(id);
    if (!tags.length) return "It is not in this user's slate now.";
    const tagged = await api("POST", "v1/recommend", { ...column.query(), filter: { all_of: tags } });
    return at(tagged) ? `It is not in this user's slate now; among items with its tags it is at place ${at(tagged)}.` : "It is not in this user's slate now, nor among the first with its tags.";
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    return `Whether it is in a slate is not known: ${error.message}`;
  }
}

// --- what runs, and how ---

const figures = new Figures();

// Short of patience: the next look comes soon, and they do not overlap.
async function look(path) {
  const headers = session.key ? { Authorization: `Bearer ${session.key}` } : {};
  const answer = await fetch(path, { headers, signal: AbortSignal.timeout(LOOK_MS) });
  return { answer, text: await answer.text() };
}

async function live() {
  let metrics;
  let ready;
  let version;
  try {
    [metrics, ready, version] = await Promise.all(["metrics", "readyz", "version"].map(look));
    ready = JSON.parse(ready.text);
    version = version.answer.ok ? JSON.parse(version.text) : null;
  } catch {
    state.trouble = "The service does not answer: what is here is of before.";
    showFigures("");
    say($("service"), "The service does not answer.", true);
    banner();
    return;
  }
  const unwell = [...(ready.reasons ?? []), ...(ready.degraded ?? [])].join(", ").replaceAll("_", " ");
  state.trouble = unwell ? `The service says: ${unwell}.` : "";
  banner();
  if (metrics.answer.ok) figures.add(metrics.text, performance.now() / 1000);
  const { status } = metrics.answer;
  showFigures(metrics.answer.ok ? null : status === 401 || status === 403 ? "This key may not read the metrics." : `The metrics answer HTTP ${status}.`);
  if (version) follow(version); // not waited for: the next look comes in time, whatever the list of models does
  const { model_version: model, num_items: count, provider, precision } = state.version ?? {};
  say($("service"), `${model ? `model ${model} · ${count.toLocaleString()} items · ${provider} ${precision} · ` : ""}${ready.status === "ready" ? (unwell ? `degraded: ${unwell}` : "ready") : `not ready: ${unwell}`}`, Boolean(unwell));
}

// `refusal`: why there are none; null: there are.
function showFigures(refusal) {
  if (refusal !== null) figures.clear();
  const rows = figures.rows();
  fill($("figures"), ...(rows ?? []).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]));
  say($("live-note"), refusal ?? (rows ? "Of the last minute, this replica." : "…"));
}

// Models come and go while the page is open, and what failed at the start may work by now.
async function follow(version) {
  if (!state.isStarted) return began();
  const isAnother = version.model_version !== state.version.model_version;
  state.version = version;
  if (!isAnother && performance.now() - state.lookedAt < MODELS_MS) return offer();
  state.lookedAt = performance.now();
  if (state.mayList) await listModels();
  else state.models = [version.model_version];
  if (!state.users) await someUsers();
  return offer();
}

async function listModels() {
  try {
    state.models = (await api("GET", "v1/models")).serving;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    state.mayList = error.status !== 401 && error.status !== 403; // a key without the scope admin
    if (!state.mayList || !state.models.length) state.models = [state.version.model_version];
  }
}

function offer() {
  for (const column of state.columns) column.offer(state.models, state.version);
}

// --- start ---

async function start() {
  const isNewest = turns.start.begin();
  state.isStarted = true;
  try {
    state.version = await api("GET", "version");
  } catch (error) {
    state.isStarted = false; // `live` begins again when it answers
    throw error;
  }
  state.mayList = true;
  state.lookedAt = performance.now();
  await listModels();
  if (!isNewest()) return;
  offer();
  const users = await someUsers();
  if (!isNewest()) return;
  const asked = new URLSearchParams(location.search).get("user") ?? users[0];
  if (asked) await show(asked);
  // Of a key that is bound to one user the service names that one.
  if (isNewest() && state.user === asked && state.isForbidden && state.users?.length === 1 && state.users[0] !== asked) await show(state.users[0]);
  if (!asked) say($("history-note"), "No user is stored yet: type any id, and send events.");
}

function began() {
  start().catch((error) => {
    if (!(error instanceof Refused)) throw error;
    say($("history-note"), error.message, true);
  });
}

async function watch() {
  if (!document.hidden) await live();
  setTimeout(watch, LIVE_MS);
}

session.onUnauthorized = () => askKey(session.key ? "The service does not know this key." : "This service takes requests with a key alone.");
setColumns(1);
$("user-form").addEventListener("submit", (event) => {
  event.preventDefault();
  show($("user").value);
});
$("again").addEventListener("click", () => askAll());
$("next").addEventListener("click", () => askAll(state.columns.filter((column) => column.last), (column) => column.last.slate.recommendation_id));
$("compare").addEventListener("change", (event) => {
  setColumns(event.target.checked ? 2 : 1);
  for (const column of state.columns) column.shown();
  askAll(state.columns.filter((column) => !column.last));
});
$("item-form").addEventListener("submit", addItem);
$("ask-key").addEventListener("click", () => askKey());
$("key-form").addEventListener("submit", (event) => {
  const key = event.submitter?.value === "drop" ? "" : $("key").value.trim();
  say($("key-trouble"), "");
  if (!isKey(key)) {
    event.preventDefault();
    say($("key-trouble"), "No key of a service holds such characters: letters, digits and signs of ASCII alone.", true);
    return;
  }
  $("key").value = "";
  useAnotherKey(key);
});
began();
watch();
