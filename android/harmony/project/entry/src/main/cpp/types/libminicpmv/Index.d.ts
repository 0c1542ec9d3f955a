/** Starts an engine; the listener gets its lines, and null at its end. Returns the engine. */
export const start: (listener: (line: string | null) => void) => number;
/** Sends a request, one line of JSON. */
export const send: (engine: number, request: string) => void;
/** Ends the input of an engine: it cancels what runs, and ends. */
export const close: (engine: number) => void;
