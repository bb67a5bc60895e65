// The pages' own small language: nothing that comes from outside ever becomes markup.

export const $ = (id) => document.getElementById(id);

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "share") element.style.setProperty("--share", `${Math.round(value * 100)}%`);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function fill(element, ...children) {
  element.replaceChildren(...children.filter((child) => child !== null && child !== undefined));
}

export function say(element, text, isBad = false) {
  element.classList.toggle("bad", isBad);
  if (element.textContent !== text) element.textContent = text; // a screen reader reads again whatever is set again
}

// Whoever begins makes all who began before old: an answer that comes late changes nothing any more.
export class Turns {
  begin() {
    const turn = (this.newest = {});
    return () => turn === this.newest;
  }
}
