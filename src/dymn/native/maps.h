/* Loops over the maps of a batch, a map being one channel of one clip, shared out among threads. */

#ifndef DYMN_MAPS_H
#define DYMN_MAPS_H

#include "vectors.h"

INLINE vec load_part(const float *p, int n) { /* the first n lanes, zeros behind */
    if (n >= LANES) return load(p);
#if LANES == 16
    return (vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
    vec v = splat(0);
    memcpy(&v, p, sizeof(float) * (size_t)n);
    return v;
#endif
}

INLINE void store_part(float *p, vec v, int n) {
    if (n >= LANES) store(p, v);
#if LANES == 16
    else _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
    else memcpy(p, &v, sizeof(float) * (size_t)n);
#endif
}

/* A vector in double precision, in halves that fit registers. Sums of terms that cancel, as those of the gradient of a slope, are such. */
typedef float half __attribute__((vector_size(2 * LANES)));
typedef double exact __attribute__((vector_size(4 * LANES)));
typedef struct {
    exact low, high;
} wide;

INLINE wide widened(vec v) {
    half parts[2];
    memcpy(parts, &v, sizeof v);
    return (wide){__builtin_convertvector(parts[0], exact), __builtin_convertvector(parts[1], exact)};
}

INLINE void add(wide *sum, wide v) {
    sum->low += v.low;
    sum->high += v.high;
}

INLINE void add_product(wide *sum, wide a, wide b) {
    sum->low += a.low * b.low;
    sum->high += a.high * b.high;
}

INLINE double total_of(wide v) {
    exact halves = v.low + v.high;
    double sum = 0;
    UNROLL
    for (int i = 0; i < LANES / 2; i++) sum += halves[i];
    return sum;
}

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
