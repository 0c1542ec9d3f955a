// The engine as a program: a process that reads requests from stdin and writes events to stdout.
#include <unistd.h>

#include "runtime/engine/engine_main.h"

int main() { return engine_main(STDIN_FILENO, STDOUT_FILENO); }
