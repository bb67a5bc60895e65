// The API's description, /openapi.json, as a page to read. It asks nobody but this service.

import { $, fill, h, say } from "./page.js";

const METHODS = ["get", "post", "put", "patch", "delete"];
let description;

// A form is named where it is used and written out once, so that forms in forms need no depth.
const nameOf = (reference) => reference.split("/").at(-1);
const resolved = (one) => (one?.$ref ? one.$ref.slice(2).split("/").reduce((part, name) => part[name], description) : one);

// Paragraphs, and `code` in them: what descriptions here are made of.
function prose(text = "") {
  return text.split(/\n\s*\n/).filter(Boolean).map((paragraph) => h("p", {}, ...words(paragraph)));
}

const words = (text = "") => text.split("`").map((part, index) => (index % 2 ? h("code", {}, part) : part));

// What a value may be: words, with links to forms.
function type(schema) {
  if (schema === undefined || schema === true) return ["anything"];
  if (schema.$ref) return [h("a", { href: `#form-${nameOf(schema.$ref)}` }, nameOf(schema.$ref))];
  const either = schema.anyOf ?? schema.oneOf;
  if (either) return either.flatMap((one, index) => (index ? [" or ", ...type(one)] : type(one)));
  if (schema.allOf) return schema.allOf.flatMap((one, index) => (index ? [" and ", ...type(one)] : type(one)));
  if (schema.const !== undefined) return [h("code", {}, JSON.stringify(schema.const))];
  if (schema.enum) return schema.enum.flatMap((one, index) => [index ? ", " : "", h("code", {}, JSON.stringify(one))]);
  if (schema.type === "array") return ["list of ", ...type(schema.items), limits(schema)];
  if (schema.type === "object" && typeof schema.additionalProperties === "object") return ["object of ", ...type(schema.additionalProperties)];
  return [[schema.type].flat().join(" or ") || "anything", limits(schema)];
}

function limits({ minimum, maximum, exclusiveMinimum, minLength, maxLength, minItems, maxItems, format }) {
  const range = (least, most, unit) => (least !== undefined && most !== undefined ? `${least} to ${most}${unit}` : least !== undefined ? `at least ${least}${unit}` : most !== undefined ? `at most ${most}${unit}` : null);
  const parts = [range(minimum, maximum, ""), exclusiveMinimum === undefined ? null : `more than ${exclusiveMinimum}`, range(minLength, maxLength, " characters"), range(minItems, maxItems, " of them"), format];
  const said = parts.filter(Boolean).join(", ");
  return said ? ` (${said})` : "";
}

function table(caption, rows) {
  return h("div", { class: "wide", tabindex: 0, role: "group", "aria-label": caption }, h("table", {}, h("thead", {}, h("tr", {}, ...["Name", "What it may be", "Meaning"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, ...rows.map(({ name, isRequired, place, schema, text }) => h("tr", {},
      h("th", { scope: "row" }, h("code", {}, name), isRequired ? " required" : ""), h("td", {}, ...(place ? [`${place}: `] : []), ...type(schema)),
      h("td", {}, ...words(text), schema.default === undefined || schema.default === null ? null : h("span", { class: "note" }, ` Left out: ${JSON.stringify(schema.default)}.`)))))));
}

function members(name, schema) {
  const rows = Object.entries(schema.properties ?? {}).map(([member, of]) => ({ name: member, isRequired: schema.required?.includes(member), schema: of, text: of.description }));
  return rows.length ? table(`Members of ${name}`, rows) : h("p", {}, ...type(schema));
}

function content(media = {}) {
  return Object.entries(media).flatMap(([mediaType, { schema, examples = {} }]) => [
    h("p", {}, h("code", {}, mediaType), ": ", ...type(schema)),
    ...Object.entries(examples).map(([name, example]) => h("details", {}, h("summary", {}, `Example: ${resolved(example).summary ?? name}`), h("pre", { tabindex: 0 }, JSON.stringify(resolved(example).value, null, 2)))),
  ]);
}

function answer(status, given) {
  const { description: meaning, content: media, headers } = resolved(given);
  return h("details", { class: "answer" }, h("summary", {}, h("strong", {}, status), ` ${meaning === "Successful Response" ? "Done" : meaning}`),
    ...content(media), headers ? h("p", {}, `Headers: ${Object.keys(headers).join(", ")}.`) : null, media ? null : h("p", { class: "note" }, "Nothing in it."));
}

function route(path, method, operation) {
  const parameters = (operation.parameters ?? []).map(resolved);
  const body = resolved(operation.requestBody);
  return h("details", { class: "route", id: operation.operationId },
    h("summary", {}, h("span", { class: "method" }, method.toUpperCase()), " ", h("code", {}, path), " ", h("span", {}, operation.summary ?? "")),
    ...prose(operation.description),
    operation.security?.length ? h("p", { class: "note" }, operation.security.some((one) => !Object.keys(one).length) ? "With a key, where the service has keys." : "With a key: Authorization: Bearer …") : null,
    ...(parameters.length ? [h("h4", {}, "Parameters"), table(`Parameters of ${method.toUpperCase()} ${path}`, parameters.map((one) => ({ name: one.name, place: `in the ${one.in}`, isRequired: one.required, schema: one.schema, text: one.description })))] : []),
    ...(body ? [h("h4", {}, "Body"), ...content(body.content), ...Object.values(body.content).filter(({ schema }) => schema.$ref).map(({ schema }) => members(nameOf(schema.$ref), resolved(schema)))] : []),
    h("h4", {}, "Answers"), ...Object.entries(operation.responses).map(([status, given]) => answer(status, given)));
}

// A link to something in what is folded unfolds it.
function unfold() {
  const target = location.hash.length > 1 ? $(decodeURIComponent(location.hash.slice(1))) : null;
  for (let at = target; at; at = at.parentElement) if (at.localName === "details") at.open = true;
  target?.scrollIntoView();
}

async function read() {
  const response = await fetch("openapi.json");
  if (!response.ok) throw new Error(`HTTP ${response.status}`);
  description = await response.json();
  say($("release"), `release ${description.info.version}`);
  fill($("about"), ...prose(description.info.description));
  const all = Object.entries(description.paths).flatMap(([path, operations]) => METHODS.filter((method) => operations[method]).map((method) => [path, method, operations[method]]));
  const groups = description.tags.map(({ name, description: text }) => ({ name, text, routes: all.filter(([, , { tags }]) => tags?.includes(name)) })).filter(({ routes }) => routes.length);
  fill($("contents"), ...groups.map(({ name }) => h("a", { href: `#group-${name}` }, name)), h("a", { href: "#schemas" }, "forms"));
  fill($("routes"), ...groups.map(({ name, text, routes }) => h("section", { "aria-labelledby": `group-${name}` },
    h("h2", { id: `group-${name}` }, name), ...prose(text), ...routes.map(([path, method, operation]) => route(path, method, operation)))));
  $("schemas").append(...Object.entries(description.components.schemas).sort(([one], [other]) => one.localeCompare(other)).map(([name, schema]) => h("details", { id: `form-${name}` },
    h("summary", {}, h("code", {}, name)), ...prose(schema.description), members(name, schema))));
  $("schemas").hidden = false;
  say($("docs-note"), `${all.length} routes.`);
  unfold();
}

addEventListener("hashchange", unfold);
read().catch((error) => say($("docs-note"), `The description cannot be read: ${error.message}`, true));
