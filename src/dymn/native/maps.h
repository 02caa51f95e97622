/* Loops over the maps of a batch, a map being one channel of one clip, shared out among threads. */

#ifndef DYMN_MAPS_H
#define DYMN_MAPS_H

#include "vectors.h"

/* `loop` gets what it works on, the maps of its share, and which share it is. */
typedef void (*Loop)(const void *work, int first, int last, int share);
typedef struct {
    Loop loop;
    const void *work;
    int first, last, share;
} Part;
ENTRY(run_part, argument) {
    const Part *part = argument;
    part->loop(part->work, part->first, part->last, part->share);
    return 0;
}
static void for_maps(Loop loop, const void *work, int maps, int n_threads) {
    n_threads = smaller(smaller(n_threads, MOST_THREADS), maps);
    Part parts[MOST_THREADS];
    Thread threads[MOST_THREADS];
    int started[MOST_THREADS] = {0};
    for (int i = 0; i < n_threads; i++) {
        Part part = {loop, work, first_of(maps, i, n_threads), first_of(maps, i + 1, n_threads), i};
        parts[i] = part;
        started[i] = i > 0 && start_thread(&threads[i], run_part, &parts[i]);
    }
    for (int i = 0; i < n_threads; i++) { /* what could not be started is done here */
        if (started[i]) join_thread(threads[i]);
        else run_part(&parts[i]);
    }
}

#endif
