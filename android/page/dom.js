// Small helpers to make elements.

const SVG = 'http://www.w3.org/2000/svg';

/** Returns the element of an id. */
export function find(id) {
  return document.getElementById(id);
}

/** Makes an element: its properties, then its children; texts stand as they are. */
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

/** Makes a button with a text, and perhaps an icon of index.html. */
export function button(text, onClick, icon, style) {
  const element = make('button', {type: 'button', className: style || ''});
  if (icon) {
    element.append(drawing(icon));
  }
  element.append(text);
  element.addEventListener('click', onClick);
  return element;
}

/** Makes one of the icons of index.html. */
export function drawing(name) {
  const svg = document.createElementNS(SVG, 'svg');
  const use = document.createElementNS(SVG, 'use');
  use.setAttribute('href', '#i-' + name);
  svg.setAttribute('aria-hidden', 'true');
  svg.append(use);
  return svg;
}

/** Puts children in place of those before. */
export function fill(element, ...children) {
  while (element.firstChild) {
    element.firstChild.remove();
  }
  element.append(...children.filter((child) => child !== null));
}

/** Says something to a screen reader. */
export function announce(text) {
  find('announce').textContent = text;
}
