/* Vectors in the compiler's own notation, one size for each set of instructions, and threads: what all compiled code of dymn shares. */

#ifndef DYMN_VECTORS_H
#define DYMN_VECTORS_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#include <windows.h>
#define EXPORT __declspec(dllexport)
#else
#include <pthread.h>
#include <sched.h>
#define EXPORT __attribute__((visibility("default")))
#endif

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#define ROWS 8 /* of a register tile */
#define MAXIMUM _mm512_max_ps
#define MINIMUM _mm512_min_ps
#elif defined(__AVX2__)
#include <immintrin.h>
#define LANES 8
#define ROWS 4
#define MAXIMUM _mm256_max_ps
#define MINIMUM _mm256_min_ps
#elif defined(__SSE2__)
#include <immintrin.h>
#define LANES 4
#define ROWS 4
#define MAXIMUM _mm_max_ps
#define MINIMUM _mm_min_ps
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#define LANES 4
#define ROWS 8
#define MAXIMUM vmaxq_f32
#define MINIMUM vminq_f32
#else
#error "There are no vectors for this CPU here; dymn computes without this file then."
#endif

#define SLACK 64 /* floats behind a buffer that may be read and written */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLED(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

INLINE vec load(const float *p) { return *(const vec *)p; }
INLINE void store(float *p, vec v) { *(vec *)p = v; }
INLINE vec splat(float x) { return x - (vec){0}; }
INLINE vec maximum(vec a, vec b) { return (vec)MAXIMUM(a, b); }
INLINE vec minimum(vec a, vec b) { return (vec)MINIMUM(a, b); }
INLINE vec masked(vec v, ivec mask) { return (vec)((ivec)v & mask); }

INLINE ivec lanes_below(int n) {
    ivec mask;
    UNROLL
    for (int i = 0; i < LANES; i++) mask[i] = i < n ? -1 : 0;
    return mask;
}

INLINE float total(vec v) {
    float sum = 0;
    UNROLL
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
}

/* Even places of a row to `even`, odd ones to `odd`; 2 * n values are read. */
INLINE void part_row(const float *row, int n, float *even, float *odd) {
    for (int i = 0; i < n; i += LANES) {
        vec low = load(row + 2 * i), high = load(row + 2 * i + LANES);
#if LANES == 16
        store(even + i, SHUFFLED(low, high, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30));
        store(odd + i, SHUFFLED(low, high, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31));
#elif LANES == 8
        store(even + i, SHUFFLED(low, high, 0, 2, 4, 6, 8, 10, 12, 14));
        store(odd + i, SHUFFLED(low, high, 1, 3, 5, 7, 9, 11, 13, 15));
#else
        store(even + i, SHUFFLED(low, high, 0, 2, 4, 6));
        store(odd + i, SHUFFLED(low, high, 1, 3, 5, 7));
#endif
    }
}

INLINE int first_of(int n, int rank, int size) { return (int)((int64_t)n * rank / size); }
INLINE int smaller(int a, int b) { return a < b ? a : b; }
INLINE int larger(int a, int b) { return a > b ? a : b; }
INLINE int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

#ifdef _WIN32
typedef HANDLE Thread;
typedef DWORD(WINAPI *Entry)(LPVOID);
#define ENTRY(name, argument) static DWORD WINAPI name(LPVOID argument)
INLINE int start_thread(Thread *thread, Entry entry, void *argument) { return (*thread = CreateThread(0, 0, entry, argument, 0, 0)) != 0; }
INLINE void join_thread(Thread thread) { WaitForSingleObject(thread, INFINITE); CloseHandle(thread); }
#else
typedef pthread_t Thread;
typedef void *(*Entry)(void *);
#define ENTRY(name, argument) static void *name(void *argument)
INLINE int start_thread(Thread *thread, Entry entry, void *argument) { return pthread_create(thread, 0, entry, argument) == 0; }
INLINE void join_thread(Thread thread) { pthread_join(thread, 0); }
#endif

#define MOST_THREADS 256

#endif
