// Several pictures came at once: which one is the next question about?

import {find, make} from './dom.js';
import {say} from './texts.js';

let send; // to the host
let panels; // `redraw`, `open` and `closeAll`
let pictures = []; // to choose from

/** Sets up the choice. */
export function start(sender, access) {
  send = sender;
  panels = access;
  find('shared').addEventListener('close', () => {
    if (pictures.length > 0) { // none was chosen
      pictures = [];
      send('pick');
    }
  });
}

/** Shows the pictures. */
export function show(event) {
  pictures = event.pictures;
  if (find('shared').open) {
    panels.redraw('shared');
  } else {
    panels.open('shared');
  }
}

/** See panels.js. */
export function content() {
  const offered = pictures;
  return {
    key: offered,
    make: () => [make('div', {className: 'offered'}, ...offered.map((picture, i) => {
      const image = make('img', {alt: '', decoding: 'async'});
      image.src = 'picture/' + picture.id;
      const choice = make('button', {type: 'button', id: 'offered-' + picture.id}, image);
      choice.setAttribute('aria-label', `${i + 1}: ${say('pictureOf', picture)}`);
      choice.addEventListener('click', () => {
        pictures = [];
        send('pick', {picture: picture.id});
        panels.closeAll();
      });
      return choice;
    }))],
  };
}
