/* The depthwise convolution with a kernel for each clip and channel, and its gradients, for training on a CPU.
 *
 * A map is one channel of one clip, [F][T]; there are clips * channels of them, each with a kernel of its own. It is copied with a
 * margin of zeros first (with stride 2, even and odd columns apart), so that the loops have no edges.
 */

#include "maps.h"

typedef struct {
    const float *x, *weight, *gradient; /* [maps][F][T], [maps][k * k], [maps][F'][T'] */
    float *out, *dx, *dweight;          /* as gradient, x and weight; those not wanted are 0 */
    float *memory;                      /* see dymn_depthwise_memory */
    int maps, n_bands, n_frames, kernel_size, stride;
} Convolution;

INLINE int bands_out(const Convolution *c) { return (c->n_bands - 1) / c->stride + 1; }
INLINE int frames_out(const Convolution *c) { return (c->n_frames - 1) / c->stride + 1; }
INLINE int row_of(int n_frames, int kernel_size) { return round_up(n_frames + 2 * kernel_size, 16) + SLACK; }

static int64_t scratch_size(const Convolution *c) { /* the map and the gradient, both with margins, and a row */
    return (int64_t)row_of(c->n_frames, c->kernel_size) * (2 * (c->n_bands + 2 * c->kernel_size) + 1) + SLACK;
}

/* Copy a map into the middle of a field of zeros. */
static void frame(const float *map, int n_bands, int n_frames, int margin, int row, float *field) {
    for (int f = 0; f < n_bands; f++)
        memcpy(field + (int64_t)(f + margin) * row + margin, map + (int64_t)f * n_frames, sizeof(float) * (size_t)n_frames);
}

/* The same with even columns first and, half a row on, odd ones; `spare` is a row of zeros. */
static void frame_parted(const float *map, int n_bands, int n_frames, int margin, int row, float *field, float *spare) {
    for (int f = 0; f < n_bands; f++) {
        float *to = field + (int64_t)(f + margin) * row;
        memcpy(spare + margin, map + (int64_t)f * n_frames, sizeof(float) * (size_t)n_frames);
        part_row(spare, row / 2 / LANES * LANES, to, to + row / 2);
    }
}

/* The same with a column of zeros after each. */
static void frame_spread(const float *map, int n_bands, int n_frames, int margin, int row, float *field) {
    for (int f = 0; f < n_bands; f++) {
        float *to = field + (int64_t)(f + margin) * row + margin;
        for (int t = 0; t < n_frames; t++) to[2 * t] = map[(int64_t)f * n_frames + t];
    }
}

INLINE const float *tap(const float *row, int64_t half, int stride, int j) {
    return stride == 1 ? row + j : row + (j & 1 ? half + j / 2 : j / 2);
}

/* The sum of `n_rows` rows, each filtered by k taps `weight_step` apart: n values to `out`, no more. */
INLINE void filter(int n_rows, int k, int stride, const float *const *rows, int64_t half, const float *const *weights, int weight_step,
                   int n, float *out) {
    for (int t = 0; t < n; t += LANES) {
        vec sum = splat(0), other = splat(0);
        UNROLL
        for (int i = 0; i < n_rows; i++)
            UNROLL
            for (int j = 0; j < k; j++) {
                vec value = load(tap(rows[i], half, stride, j) + t);
                if (j & 1) other += weights[i][j * weight_step] * value;
                else sum += weights[i][j * weight_step] * value;
            }
        sum += other;
        if (t + LANES <= n) store(out + t, sum);
        else memcpy(out + t, &sum, sizeof(float) * (size_t)(n - t));
    }
}

INLINE void forward_as(int k, int stride, const Convolution *c, int map, float *field, int row) {
    int n = frames_out(c);
    const float *rows[5], *weights[5];
    for (int f = 0; f < bands_out(c); f++) {
        for (int i = 0; i < k; i++) {
            rows[i] = field + (int64_t)(f * stride + i) * row;
            weights[i] = c->weight + (int64_t)map * k * k + i * k;
        }
        filter(k, k, stride, rows, row / 2, weights, 1, n, c->out + ((int64_t)map * bands_out(c) + f) * n);
    }
}

/* dL/dx: the gradient, its columns spread apart if the stride is 2, filtered by the kernel turned round. */
INLINE void to_input_as(int k, int stride, const Convolution *c, int map, const float *field, int row) {
    const float *kernel = c->weight + (int64_t)map * k * k;
    for (int f = 0; f < c->n_bands; f++) {
        const float *rows[5], *weights[5];
        float *out = c->dx + ((int64_t)map * c->n_bands + f) * c->n_frames;
        int n_rows = 0;
        for (int i = (f + k / 2) % stride; i < k; i += stride) { /* rows of the kernel that this band met */
            rows[n_rows] = field + (int64_t)((f + k / 2 - i + stride * k) / stride - k + k / 2) * row;
            weights[n_rows++] = kernel + i * k + k - 1;
        }
        if (n_rows == k) filter(k, k, 1, rows, 0, weights, -1, c->n_frames, out);
        else if (n_rows == 1) filter(1, k, 1, rows, 0, weights, -1, c->n_frames, out);
        else if (n_rows == 2) filter(2, k, 1, rows, 0, weights, -1, c->n_frames, out);
        else filter(3, k, 1, rows, 0, weights, -1, c->n_frames, out);
    }
}

/* dL/dkernel: for each tap, the product of the gradient with the columns that the tap met. */
INLINE void to_kernel_as(int k, int stride, const Convolution *c, int map, const float *field, int row) {
    int n = frames_out(c), whole = n / LANES * LANES;
    ivec tail = lanes_below(n - whole);
    float *dweight = c->dweight + (int64_t)map * k * k;
    for (int i = 0; i < k; i++) {
        vec sums[5] = {0};
        for (int f = 0; f < bands_out(c); f++) {
            const float *gradient = c->gradient + ((int64_t)map * bands_out(c) + f) * n, *from = field + (int64_t)(f * stride + i) * row;
            int t = 0;
            for (; t < whole; t += LANES) {
                vec value = load(gradient + t);
                UNROLL
                for (int j = 0; j < k; j++) sums[j] += value * load(tap(from, row / 2, stride, j) + t);
            }
            if (t < n) {
                vec value = splat(0);
                memcpy(&value, gradient + t, sizeof(float) * (size_t)(n - t));
                UNROLL
                for (int j = 0; j < k; j++) sums[j] += value * masked(load(tap(from, row / 2, stride, j) + t), tail);
            }
        }
        UNROLL
        for (int j = 0; j < k; j++) dweight[i * k + j] = total(sums[j]);
    }
}

INLINE void convolve_as(int k, int stride, const Convolution *c, int first, int last, float *field) {
    int row = row_of(c->n_frames, k), margin = k / 2, bands = bands_out(c), frames = frames_out(c);
    float *spread = field + (int64_t)row * (c->n_bands + 2 * k), *spare = spread + (int64_t)row * (c->n_bands + 2 * k);
    memset(field, 0, sizeof(float) * (size_t)scratch_size(c));
    for (int map = first; map < last; map++) {
        if (c->out || c->dweight) {
            const float *x = c->x + (int64_t)map * c->n_bands * c->n_frames;
            if (stride == 1) frame(x, c->n_bands, c->n_frames, margin, row, field);
            else frame_parted(x, c->n_bands, c->n_frames, margin, row, field, spare);
        }
        if (c->out) forward_as(k, stride, c, map, field, row);
        if (c->dweight) to_kernel_as(k, stride, c, map, field, row);
        if (c->dx) {
            const float *gradient = c->gradient + (int64_t)map * bands * frames;
            if (stride == 1) frame(gradient, bands, frames, margin, row, spread);
            else frame_spread(gradient, bands, frames, margin, row, spread);
            to_input_as(k, stride, c, map, spread, row);
        }
    }
}

static void convolve(const void *work, int first, int last, int share) {
    const Convolution *c = work;
    float *memory = c->memory + scratch_size(c) * share;
    if (c->kernel_size == 3 && c->stride == 1) convolve_as(3, 1, c, first, last, memory);
    else if (c->kernel_size == 3) convolve_as(3, 2, c, first, last, memory);
    else if (c->stride == 1) convolve_as(5, 1, c, first, last, memory);
    else convolve_as(5, 2, c, first, last, memory);
}

/* How many floats of memory a call needs. */
EXPORT int64_t dymn_depthwise_memory(const Convolution *c, int32_t n_threads) {
    return scratch_size(c) * smaller(smaller(n_threads, MOST_THREADS), c->maps);
}

/* Compute those of out, dx and dweight that are not 0. */
EXPORT void dymn_depthwise(const Convolution *c, int32_t n_threads) { for_maps(convolve, c, c->maps, n_threads); }
