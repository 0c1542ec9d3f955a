// The area above the chat: a problem, a warning, or examples for the first question.

import {button, fill, find, make} from './dom.js';
import {say, sayBytes, sayError} from './texts.js';

const WEIGHTS = 'weights.safetensors';
const NEEDS_WEIGHTS = ['no_weights', 'wrong_weights', 'damaged_weights', 'weights_gone',
  'weights_locked', 'no_space'];
const EXAMPLES = ['exampleWhat', 'exampleRead', 'exampleCount', 'exampleColour'];

let send; // to the host
let onExample; // takes an example question
let drawn = ''; // identifies what is shown, so that it is not drawn again

/** Sets up the area. */
export function start(sender, exampleTaker) {
  send = sender;
  onExample = exampleTaker;
}

/** Whether an error means that the user has to provide weights, if the host imports them. */
export function isAboutWeights(state, code) {
  return state !== null && state.can.includes('import') && NEEDS_WEIGHTS.includes(code);
}

/** Draws what the state asks for. */
export function draw(state) {
  const problem = state.job && state.job.kind !== 'answer' ? null : state.problem;
  const start = find('start');
  const isEmpty = state.shown === undefined;
  start.hidden = !problem && !isEmpty && !state.low_memory;
  start.className = problem || state.low_memory ? 'card' : 'empty';
  const sees = !(state.model && state.model.image_tokens === 0);
  const key = JSON.stringify(
    [problem, state.low_memory, state.bundle, document.documentElement.lang, sees]);
  if (key === drawn) {
    return; // unchanged; redrawing would take the focus from a button
  }
  drawn = key;
  if (problem && isAboutWeights(state, problem.code)) {
    drawWeights(start, state, problem);
  } else if (problem) {
    fill(start, make('h2', {}, say('problemTitle')), make('p', {}, sayError(problem.code)),
      make('p', {className: 'detail'}, problem.message),
      make('div', {className: 'actions'}, retryButton('tryAgain'),
        button(say('saveLog'), () => send('log'))));
  } else if (state.low_memory) {
    fill(start, make('p', {}, say('lowMemory', {
      free: sayBytes(state.low_memory), size: sayBytes(state.bundle.weights_bytes),
    })));
  } else {
    fill(start, make('h2', {}, say(sees ? 'emptyTitle' : 'emptyTitleText')),
      make('p', {}, say('empty')), sees ? examples() : null);
  }
}

function examples() {
  const list = EXAMPLES.map((name) =>
    make('li', {}, button(say(name), () => onExample(say(name)))));
  return make('ul', {className: 'examples', 'aria-label': say('examples')}, ...list);
}

/** Draws the first start: how to provide the weights. */
function drawWeights(start, state, problem) {
  const titles = {
    wrong_weights: 'startWrong', damaged_weights: 'startDamaged', weights_gone: 'startGone',
    weights_locked: 'startLocked',
  };
  const isMissing = problem.code === 'no_weights';
  const values = {
    name: WEIGHTS,
    size: sayBytes(state.bundle.weights_bytes),
    copied: sayBytes(state.bundle.copied_bytes),
    free: sayBytes(state.about.free_space_bytes),
    file: state.bundle.weights_file,
  };
  const mayKeep = state.can.includes('keep');
  fill(start,
    make('h2', {}, say(titles[problem.code] || 'startTitle')),
    isMissing ? null : make('p', {}, sayError(problem.code)),
    isMissing ? null : make('p', {className: 'detail'}, problem.message),
    values.file ? make('p', {}, say('startKept', values)) : null,
    make('p', {}, say('startIntro', values)),
    make('ol', {},
      make('li', {}, say(mayKeep ? 'startFileKeep' : 'startFile', values)),
      make('li', {}, say('startPc'), ' ', make('code', {}, 'minicpmv sideload'))),
    make('p', {}, say('startSpace', values)),
    state.bundle.copied_bytes ? make('p', {}, say('startCopied', values)) : null,
    make('div', {className: 'actions'},
      mayKeep ? button(say('keepWeights'), () => send('import', {keep: true}), null, 'strong') : null,
      button(say(mayKeep ? 'copyWeights' : 'chooseWeights'), () => send('import'), null,
        mayKeep ? '' : 'strong'),
      retryButton('lookAgain')),
    make('details', {}, make('summary', {}, say('startPlaces')),
      make('p', {className: 'detail'}, state.places.join('\n'))));
}

function retryButton(text) {
  return button(say(text), () => send('retry'));
}
