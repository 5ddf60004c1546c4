/* Inside of cli/: what there is to `mpiserve bench`. argv[2] is the name; each returns the exit status. */
#ifndef CLI_BENCH_H
#define CLI_BENCH_H

int bench_route(int argc, char **argv);
int bench_engine(int argc, char **argv);

#endif
