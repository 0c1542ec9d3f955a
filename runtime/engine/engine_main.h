/* The engine as a function: what the shared library exports, and what the program calls.
 *
 * Plain C, so that any language with C calls can use it. */
#ifndef MINICPMV_ENGINE_ENGINE_MAIN_H_
#define MINICPMV_ENGINE_ENGINE_MAIN_H_

#ifdef __cplusplus
extern "C" {
#endif

/* Runs an engine: reads requests from in_fd and writes events to out_fd, in the lines of PROTOCOL.md.
 * Blocks until the engine has ended, so call it on a thread of its own. Pipes and sockets serve as
 * descriptors, blocking or not; both may be the same socket. They remain the caller's to close.
 *
 * To end an engine, close the other end of in_fd (or shut it down for writing), and read the other
 * end of out_fd until this function returns: an engine whose events nobody reads waits. Closing the
 * other end of out_fd ends it at its next event.
 *
 * Returns 0 after the end of the input, once all requests are answered. Returns 1 if the engine
 * cannot run or go on: the last event is then an `error` without `id`, unless nobody reads events.
 *
 * A process runs one engine at a time. A call during another one sends the error `already_running`
 * and returns 1; the other engine is not disturbed. After an engine has ended, its threads have
 * ended, its memory and descriptors are given back, and the next one can start.
 *
 * The engine handles no signals, sets no environment variables and writes nothing to stdout. One
 * exception: where a matrix unit is announced (Arm's SME, x86's AMX), the first engine of a process
 * handles SIGILL while it tries the unit, some microseconds, and then puts the handler back. For AMX
 * it asks Linux to save the process's tiles (arch_prctl), which enlarges the stack that a signal
 * takes by 8 KiB. It blocks SIGPIPE in its own threads. A crash is the process's: SIGSEGV, SIGBUS (a mapped file was
 * truncated) and SIGABRT arrive where the host lets them. PROTOCOL.md lists the environment
 * variables that are read at the start. `peak_rss_bytes` counts the whole process. */
__attribute__((visibility("default"))) int engine_main(int in_fd, int out_fd);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* MINICPMV_ENGINE_ENGINE_MAIN_H_ */
