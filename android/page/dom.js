// Helpers for DOM elements.

const SVG = 'http://www.w3.org/2000/svg';

/** Returns the element with an id. */
export function find(id) {
  return document.getElementById(id);
}

/** Creates an element with properties and children; strings become text nodes. */
export function make(name, properties, ...children) {
  const element = document.createElement(name);
  for (const key of Object.keys(properties || {})) {
    if (key in element) {
      element[key] = properties[key];
    } else {
      element.setAttribute(key, properties[key]);
    }
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Creates a button with a text and, optionally, an icon from index.html. */
export function button(text, onClick, icon, style) {
  const element = make('button', {type: 'button', className: style || ''});
  if (icon) {
    element.append(makeIcon(icon));
  }
  element.append(text);
  element.addEventListener('click', onClick);
  return element;
}

/** Creates an icon from index.html. */
export function makeIcon(name) {
  const svg = document.createElementNS(SVG, 'svg');
  const use = document.createElementNS(SVG, 'use');
  use.setAttribute('href', '#i-' + name);
  svg.setAttribute('aria-hidden', 'true');
  svg.append(use);
  return svg;
}

/** Replaces an element's children. */
export function fill(element, ...children) {
  while (element.firstChild) {
    element.firstChild.remove();
  }
  element.append(...children.filter((child) => child !== null));
}

/** Announces a text to screen readers. */
export function announce(text) {
  find('announce').textContent = text;
}

/** Makes a node look like a fresh one; what is alike stays, with its listeners and selection. */
export function patch(old, fresh) {
  if (old.nodeType === Node.TEXT_NODE && fresh.nodeType === Node.TEXT_NODE) {
    if (fresh.data.startsWith(old.data)) {
      old.appendData(fresh.data.slice(old.data.length));
    } else {
      old.data = fresh.data;
    }
  } else if (old.nodeName !== fresh.nodeName || old.className !== fresh.className) {
    old.replaceWith(fresh);
  } else {
    const children = Array.from(fresh.childNodes);
    children.forEach((child, i) => {
      if (old.childNodes[i]) {
        patch(old.childNodes[i], child);
      } else {
        old.append(child);
      }
    });
    while (old.childNodes.length > children.length) {
      old.lastChild.remove();
    }
  }
}
