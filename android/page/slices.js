// The grid on a picture while it is encoded. A model with slices encodes a picture as several
// images: an overview, then the slices, row by row.

import {make, makeIcon} from './dom.js';

let drawn = null; // the grid on the screen; null: none

/**
 * Returns where the encoding of a picture is: `columns`, `rows`, `images`, `done` (the number of
 * whole images) and `image`, the number of the one in progress. Null if the picture is one image.
 */
export function placeOf(progress) {
  if (!progress || !progress.grid || !(progress.total > 0)) {
    return null;
  }
  const [columns, rows] = progress.grid;
  const images = columns * rows + 1;
  const done = Math.floor(progress.done * images / progress.total);
  return {columns, rows, images, done, image: Math.min(done + 1, images)};
}

/** Shows a place on a picture's element, or nothing where one of them is null. */
export function draw(picture, place) {
  if (drawn !== null && (place === null || drawn.parentNode !== picture)) {
    drawn.remove();
    drawn = null;
  }
  if (picture === null || place === null) {
    return;
  }
  if (drawn === null) {
    drawn = gridElement(place);
    picture.append(drawn);
  }
  Array.from(drawn.children).forEach((cell, i) => {
    cell.className = i < place.done ? 'done' : i === place.done ? 'now' : 'next';
  });
}

/** The first child is the overview, which lies around the slices. */
function gridElement(place) {
  const grid = make('span', {className: 'slices', 'aria-hidden': 'true'});
  grid.style.gridTemplateColumns = `repeat(${place.columns}, 1fr)`;
  grid.style.gridTemplateRows = `repeat(${place.rows}, 1fr)`;
  for (let i = 0; i < place.images; i++) {
    grid.append(make('span', {}, makeIcon('done')));
  }
  return grid;
}
