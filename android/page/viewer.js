// A picture on the whole screen, with zoom: pinch, double tap, the buttons, or + and -.

import {find} from './dom.js';
import {say} from './texts.js';

const MOST = 6; // times the size that fits
const STEP = 1.5;
const DOUBLE_MS = 300;

let zoom = 1;
const fingers = new Map(); // pointer id to its position
let pinch = null; // where a pinch began: `distance`, `zoom`
let tapped = 0; // time of the latest tap

/** Sets up the viewer. */
export function start() {
  const stage = find('viewer-stage');
  find('viewer-in').addEventListener('click', () => zoomTo(zoom * STEP));
  find('viewer-out').addEventListener('click', () => zoomTo(zoom / STEP));
  find('viewer-close').addEventListener('click', () => find('viewer').close());
  find('viewer').addEventListener('keydown', (event) => {
    if (event.key === '+' || event.key === '=') {
      zoomTo(zoom * STEP);
    } else if (event.key === '-') {
      zoomTo(zoom / STEP);
    }
  });
  find('viewer-picture').addEventListener('load', () => zoomTo(1));
  window.addEventListener('resize', () => find('viewer').open && zoomTo(zoom));
  stage.addEventListener('pointerdown', onDown);
  stage.addEventListener('pointermove', onMove);
  for (const name of ['pointerup', 'pointercancel']) {
    stage.addEventListener(name, (event) => {
      fingers.delete(event.pointerId);
      pinch = null;
    });
  }
  stage.addEventListener('wheel', (event) => {
    if (event.ctrlKey) {
      event.preventDefault();
      zoomTo(event.deltaY < 0 ? zoom * STEP : zoom / STEP, event.clientX, event.clientY);
    }
  }, {passive: false});
}

/** Shows a picture of the chat. */
export function show(id) {
  const labels = {'viewer-in': 'zoomIn', 'viewer-out': 'zoomOut', 'viewer-close': 'close'};
  for (const name of Object.keys(labels)) {
    find(name).setAttribute('aria-label', say(labels[name]));
    find(name).title = say(labels[name]);
  }
  find('viewer').setAttribute('aria-label', say('picture'));
  find('viewer-stage').setAttribute('aria-label', say('picture'));
  const picture = find('viewer-picture');
  picture.alt = say('picture');
  picture.src = 'picture/' + id;
  fingers.clear();
  find('viewer').showModal();
  zoomTo(1);
}

function onDown(event) {
  fingers.set(event.pointerId, event);
  if (fingers.size === 2) {
    pinch = {distance: distance(), zoom};
  } else if (event.timeStamp - tapped < DOUBLE_MS) {
    zoomTo(zoom > 1 ? 1 : 2.5, event.clientX, event.clientY);
  }
  tapped = fingers.size === 1 ? event.timeStamp : 0;
}

function onMove(event) {
  if (!fingers.has(event.pointerId)) {
    return;
  }
  const before = fingers.get(event.pointerId);
  fingers.set(event.pointerId, event);
  if (fingers.size === 1) {
    find('viewer-stage').scrollLeft -= event.clientX - before.clientX;
    find('viewer-stage').scrollTop -= event.clientY - before.clientY;
  } else if (pinch !== null && fingers.size === 2) {
    const [one, other] = Array.from(fingers.values());
    zoomTo(pinch.zoom * distance() / pinch.distance,
      (one.clientX + other.clientX) / 2, (one.clientY + other.clientY) / 2);
  }
}

function distance() {
  const [one, other] = Array.from(fingers.values());
  return Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY) || 1;
}

/** Zooms; the point of the picture at these coordinates of the screen stays there. */
function zoomTo(wanted, x, y) {
  const stage = find('viewer-stage');
  const picture = find('viewer-picture');
  const bounds = stage.getBoundingClientRect();
  const [across, down] = x === undefined
    ? [stage.clientWidth / 2, stage.clientHeight / 2] : [x - bounds.left, y - bounds.top];
  const before = zoom;
  zoom = Math.min(MOST, Math.max(1, wanted));
  const fit = Math.min(stage.clientWidth / (picture.naturalWidth || 1),
    stage.clientHeight / (picture.naturalHeight || 1));
  const [left, top] = [stage.scrollLeft, stage.scrollTop];
  picture.style.width = Math.floor(picture.naturalWidth * fit * zoom) + 'px';
  picture.style.height = Math.floor(picture.naturalHeight * fit * zoom) + 'px';
  stage.scrollLeft = (left + across) * zoom / before - across;
  stage.scrollTop = (top + down) * zoom / before - down;
  find('viewer-in').disabled = zoom === MOST;
  find('viewer-out').disabled = zoom === 1;
}
