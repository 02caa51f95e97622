/* Log-mel spectrograms: window, Fourier transform, power, mel filters and logarithm of as many frames at once as a vector has lanes.
 * No frame knows of the others, so its values are the same wherever it stands.
 */

#include "maps.h"

typedef struct {
    const float *frames;   /* [clips][n_frames][n_fft], rows and clips that far apart, frames may overlap */
    const float *window;   /* [n_fft] */
    const float *turns;    /* [n_fft][2]: cosine and sine of -2 pi i / n_fft */
    const float *basis;    /* [n_mels][n_fft / 2 + 1] */
    const int32_t *ranges; /* [n_mels][2]: where a filter is not zero */
    float *out, *memory;   /* [clips][n_mels][n_frames] */
    int clips, clip_stride, n_frames, frame_stride, n_fft, n_mels;
    float offset, shift, scale; /* (log(mel + offset) + shift) * scale */
} Spectrogram;

/* Natural logarithm of a positive number, with a relative error of 1e-7: of a power of two and of a number near one. What is not
 * finite stays what it is; the compiler is told that there is no such thing, so that is seen to in integers. */
INLINE vec logarithm(vec x) {
    ivec bits = (ivec)x, power = (bits - 0x3f3504f3) >> 23; /* sqrt(1/2) is the lowest number near one */
    vec f = (vec)(bits - (power << 23)) - 1.0f, n = __builtin_convertvector(power, vec), square = f * f;
    vec p = splat(7.0376836292e-2f);
    p = p * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    vec found = (p * f * square + (n * -2.12194440e-4f - 0.5f * square)) + f + n * 0.693359375f;
    ivec odd = (bits >= 0x7f800000) | (bits < 0);
    return (vec)((bits & odd) | ((ivec)found & ~odd));
}

#if LANES == 16
#define LOW(a, b) SHUFFLED(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define HIGH(a, b) SHUFFLED(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif LANES == 8
#define LOW(a, b) SHUFFLED(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define HIGH(a, b) SHUFFLED(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define LOW(a, b) SHUFFLED(a, b, 0, 4, 1, 5)
#define HIGH(a, b) SHUFFLED(a, b, 2, 6, 3, 7)
#endif

/* Turn LANES rows of a frame each into LANES rows of a sample each: riffled log2(LANES) times, rows have become columns. */
INLINE void transpose(vec *rows) {
    UNROLL
    for (int turn = 1; turn < LANES; turn *= 2) {
        vec riffled[LANES];
        UNROLL
        for (int i = 0; i < LANES / 2; i++) {
            riffled[2 * i] = LOW(rows[i], rows[i + LANES / 2]);
            riffled[2 * i + 1] = HIGH(rows[i], rows[i + LANES / 2]);
        }
        memcpy(rows, riffled, sizeof riffled);
    }
}

typedef struct {
    vec re, im;
} Complex;

INLINE Complex at(const float *z, int i) {
    Complex c = {load(z + 2 * LANES * i), load(z + 2 * LANES * i + LANES)};
    return c;
}
INLINE void put(float *z, int i, vec re, vec im) {
    store(z + 2 * LANES * i, re);
    store(z + 2 * LANES * i + LANES, im);
}
INLINE void put_turned(float *z, int i, vec re, vec im, const float *turn) {
    put(z, i, re * turn[0] - im * turn[1], re * turn[1] + im * turn[0]);
}

/* Fourier transform of n complex numbers, a power of two, by Stockham's method in steps of four; returns which of x and y holds it. */
static float *transform(float *x, float *y, int n, const float *turns) {
    int total_n = n, step = 1;
    for (; n >= 4; n /= 4, step *= 4) {
        int quarter = n / 4;
        for (int p = 0; p < quarter; p++) {
            const float *turn = turns + 2 * (2 * step * p);
            const float *turn_2 = turns + 2 * (4 * step * p), *turn_3 = turns + 2 * (6 * step * p);
            for (int q = 0; q < step; q++) {
                Complex a = at(x, q + step * p), b = at(x, q + step * (p + quarter));
                Complex c = at(x, q + step * (p + 2 * quarter)), d = at(x, q + step * (p + 3 * quarter));
                vec sum_re = a.re + c.re, sum_im = a.im + c.im, rest_re = a.re - c.re, rest_im = a.im - c.im;
                vec odd_re = b.re + d.re, odd_im = b.im + d.im, cross_re = b.re - d.re, cross_im = b.im - d.im;
                int to = q + step * 4 * p;
                put(y, to, sum_re + odd_re, sum_im + odd_im);
                put_turned(y, to + step, rest_re + cross_im, rest_im - cross_re, turn);
                put_turned(y, to + 2 * step, sum_re - odd_re, sum_im - odd_im, turn_2);
                put_turned(y, to + 3 * step, rest_re - cross_im, rest_im + cross_re, turn_3);
            }
        }
        float *swapped = x;
        x = y;
        y = swapped;
    }
    if (n == 1) return x;
    for (int q = 0; q < total_n / 2; q++) {
        Complex a = at(x, q), b = at(x, q + total_n / 2);
        put(y, q, a.re + b.re, a.im + b.im);
        put(y, q + total_n / 2, a.re - b.re, a.im - b.im);
    }
    return y;
}

/* The power of each frequency of real samples, whose even and odd ones are real and imaginary parts of z, transformed. */
static void powers(const float *z, int half, const float *turns, float *power) {
    Complex first = at(z, 0);
    store(power, (first.re + first.im) * (first.re + first.im));
    store(power + LANES * half, (first.re - first.im) * (first.re - first.im));
    for (int k = 1; k <= half / 2; k++) {
        Complex a = at(z, k), b = at(z, half - k);
        vec even_re = 0.5f * (a.re + b.re), even_im = 0.5f * (a.im - b.im);
        vec odd_re = 0.5f * (a.im + b.im), odd_im = 0.5f * (b.re - a.re);
        vec re = odd_re * turns[2 * k] - odd_im * turns[2 * k + 1], im = odd_re * turns[2 * k + 1] + odd_im * turns[2 * k];
        store(power + LANES * k, (even_re + re) * (even_re + re) + (even_im + im) * (even_im + im));
        store(power + LANES * (half - k), (even_re - re) * (even_re - re) + (even_im - im) * (even_im - im));
    }
}

INLINE int tiles(const Spectrogram *s) { return (s->n_frames + LANES - 1) / LANES; }
INLINE int64_t memory_size(const Spectrogram *s) { return 2 * (int64_t)s->n_fft * LANES; }

static void spectrogram(const void *work, int first, int last, int share) {
    const Spectrogram *s = work;
    float *x = s->memory + memory_size(s) * share, *y = x + (int64_t)s->n_fft * LANES;
    int bins = s->n_fft / 2 + 1;
    for (int tile = first; tile < last; tile++) {
        int clip = tile / tiles(s), begin = tile % tiles(s) * LANES, count = smaller(LANES, s->n_frames - begin);
        const float *from = s->frames + (int64_t)clip * s->clip_stride;
        for (int i = 0; i < s->n_fft; i += LANES) {
            vec rows[LANES];
            UNROLL
            for (int j = 0; j < LANES; j++)
                rows[j] = load(from + (int64_t)(begin + smaller(j, count - 1)) * s->frame_stride + i) * load(s->window + i);
            transpose(rows);
            memcpy(x + i * LANES, rows, sizeof rows);
        }
        float *z = transform(x, y, s->n_fft / 2, s->turns), *power = z == x ? y : x;
        powers(z, s->n_fft / 2, s->turns, power);
        for (int m = 0; m < s->n_mels; m++) {
            vec sum = splat(0);
            for (int k = s->ranges[2 * m]; k < s->ranges[2 * m + 1]; k++) sum += s->basis[(int64_t)m * bins + k] * load(power + LANES * k);
            vec value = (logarithm(sum + s->offset) + s->shift) * s->scale;
            memcpy(s->out + ((int64_t)clip * s->n_mels + m) * s->n_frames + begin, &value, sizeof(float) * (size_t)count);
        }
    }
}

/* How many floats of memory a call needs. */
EXPORT int64_t dymn_log_mel_memory(const Spectrogram *s, int32_t n_threads) {
    return memory_size(s) * smaller(smaller(n_threads, MOST_THREADS), s->clips * tiles(s));
}

EXPORT void dymn_log_mel(const Spectrogram *s, int32_t n_threads) { for_maps(spectrogram, s, s->clips * tiles(s), n_threads); }
