/* Inference of the network of Table I on a CPU, from the log-mel spectrogram to the embedding, in float32.
 *
 * A block is computed without ever writing its expanded feature map: eight channels at a time are expanded, row by row, into a ring
 * of as many rows as the depthwise kernel is high, and filtered from there; bias, (dynamic) activation and Coordinate Attention
 * follow while the values are in registers. Kernels are mixed from their K parts just before use. Batch norm is folded into the
 * weights, Squeeze-and-Excitation into the project kernel. Names follow runtime/fold.py; runtime/compiled.py packs the weights.
 *
 * Feature maps are [C][stride], a channel's places F * T in a row, with room behind them, so that vectors may run over the end.
 * The threads of a team run the same code and share out each loop; `meet` is the barrier between two loops.
 */

#include "maps.h"

#if defined(__AVX2__)
#include <cpuid.h>
#endif

#define PANEL 8  /* channels that are packed and computed together */
#define COLUMNS 3 /* vectors in a row of a register tile */
#define LONGEST_ATTENTION 64

enum { IDENTITY, RELU, HARDSWISH, SIGMOID };

typedef struct {
    int32_t c_in, c_exp, c_out, kernel_size;
    int32_t stride, time_stride; /* along frequency and along time: 1 or 2, and the same in blocks with a context */
    int32_t activation;
    int32_t context_size;                        /* 0: a static block */
    int32_t n_expand, n_depthwise, n_project;    /* kernels of each convolution; 1: static; n_expand 0: no expansion */
    int32_t dynamic_relu, coordinate_attention, squeeze_size, has_residual;
    const float *context_weight, *context_bias;
    const float *coefficient_weight, *coefficient_bias; /* [H][n], [n]: kernel attentions, then Dy-ReLU [4][c_exp] */
    const float *expand_weight, *expand_bias;           /* [K][c_exp / 8][c_in][8], [c_exp] */
    const float *depthwise_weight, *depthwise_bias;     /* [K][c_exp][k * k], [c_exp] */
    const float *project_weight, *project_bias;         /* [K][c_out / 8][c_exp][8], [c_out] */
    const float *frequency_weight, *frequency_bias;     /* [c_exp / 8][H][8], [c_exp] */
    const float *time_weight, *time_bias;
    const float *squeeze_weight, *squeeze_bias; /* [S][c_exp], [S] */
    const float *excite_weight, *excite_bias;   /* [S][c_exp], [c_exp] */
} Block;

typedef struct {
    int32_t n_blocks, c_stem, c_last, reserved;
    const float *stem_weight, *stem_bias; /* [c_stem][9], [c_stem] */
    const float *last_weight, *last_bias; /* [c_last / 8][c][8], [c_last] */
    const Block *blocks;
} Network;

/* e^x with a relative error of 2e-7: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]. */
INLINE vec exponential(vec x) {
    x = minimum(maximum(x, splat(-87.0f)), splat(88.0f));
    const vec shifter = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    vec shifted = x * 1.44269504f + shifter;
    vec n = shifted - shifter;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    ivec power = ((ivec)shifted - (ivec)shifter + 127) << 23;
    return p * (vec)power;
}

INLINE vec sigmoid(vec x) { return 1.0f / (1.0f + exponential(-x)); }

INLINE vec activate(vec x, int activation) {
    if (activation == RELU) return maximum(x, splat(0));
    if (activation == HARDSWISH) return x * minimum(maximum(x * (1.0f / 6.0f) + 0.5f, splat(0)), splat(1));
    if (activation == SIGMOID) return sigmoid(x);
    return x;
}

/* ---- threads ---- */

typedef struct {
    int size;
    int waiting;
    int round;
} Team;

INLINE void pause_thread(int spins) {
    if (spins < 2000) {
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#endif
        return;
    }
#ifdef _WIN32
    SwitchToThread();
#else
    sched_yield();
#endif
}

static void meet(Team *team) {
    if (team->size == 1) return;
    int round = __atomic_load_n(&team->round, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&team->waiting, 1, __ATOMIC_ACQ_REL) == team->size) {
        __atomic_store_n(&team->waiting, 0, __ATOMIC_RELAXED);
        __atomic_add_fetch(&team->round, 1, __ATOMIC_RELEASE);
        return;
    }
    for (int spins = 0; __atomic_load_n(&team->round, __ATOMIC_ACQUIRE) == round; spins += spins < 2000) pause_thread(spins);
}

/* ---- where the time goes: in builds with -DDYMN_PROFILE only, for benchmarks ---- */

#ifdef DYMN_PROFILE
#include <time.h>
enum { IN_STEM, IN_CONTEXT, IN_EXPAND, IN_FILTER, IN_PROJECT, IN_LAST, PARTS };
static double spent[PARTS];
EXPORT void dymn_spent(double *seconds) {
    memcpy(seconds, spent, sizeof spent);
    memset(spent, 0, sizeof spent);
}
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
/* Billions of operations a second that multiply-adds in registers reach, the ceiling of everything here. */
EXPORT double dymn_peak(void) {
    enum { CHAINS = 12, TURNS = 2000000 };
    vec sums[CHAINS], factor = splat(0.999999f), term = splat(1e-6f);
    for (int i = 0; i < CHAINS; i++) sums[i] = splat((float)i);
    double begin = now();
    for (int turn = 0; turn < TURNS; turn++)
        UNROLL
        for (int i = 0; i < CHAINS; i++) sums[i] = sums[i] * factor + term;
    double seconds = now() - begin;
    for (int i = 1; i < CHAINS; i++) sums[0] += sums[i];
    volatile float kept = total(sums[0]); /* or the loop is left out */
    (void)kept;
    return 2.0 * CHAINS * TURNS * LANES / seconds / 1e9;
}
#define BEGIN(part) double begin_##part = now()
#define END(part) spent[part] += now() - begin_##part
#else
#define BEGIN(part)
#define END(part)
#endif

/* ---- matrix products ---- */

/* Room for a vector behind the last place; an odd number of cache lines, so that channels do not fall on the same sets of a cache. */
static int map_stride(int n) { return (n / 16 + 2) / 2 * 32 + 16; }

/* ROWS x (width * LANES) values of A B, A packed [K][8], into registers; then bias, activation, and what is added. */
INLINE void tile(int width, int activation, const float *a, int depth, const float *b, int64_t b_stride, const float *bias,
                 const float *added, int64_t added_stride, float *out, int64_t out_stride) {
    vec sum[ROWS][COLUMNS];
    UNROLL
    for (int i = 0; i < ROWS; i++)
        UNROLL
        for (int j = 0; j < width; j++) sum[i][j] = splat(bias[i]);
    for (int k = 0; k < depth; k++, a += PANEL, b += b_stride) {
        vec column[COLUMNS];
        UNROLL
        for (int j = 0; j < width; j++) column[j] = load(b + j * LANES);
        UNROLL
        for (int i = 0; i < ROWS; i++) {
            vec row = splat(a[i]);
            UNROLL
            for (int j = 0; j < width; j++) sum[i][j] += row * column[j];
        }
    }
    UNROLL
    for (int i = 0; i < ROWS; i++)
        UNROLL
        for (int j = 0; j < width; j++) {
            vec value = activate(sum[i][j], activation);
            if (added) value += load(added + i * added_stride + j * LANES);
            store(out + i * out_stride + j * LANES, value);
        }
}

/* Eight rows of A B for n columns, up to two vectors of columns more. */
INLINE void panel_as(int activation, const float *a, int depth, const float *b, int64_t b_stride, int n, const float *bias,
                     const float *added, int64_t added_stride, float *out, int64_t out_stride) {
    for (int column = 0; column < n; column += COLUMNS * LANES) {
        int width = smaller(COLUMNS, (n - column + LANES - 1) / LANES);
        for (int row = 0; row < PANEL; row += ROWS) {
            const float *plus = added ? added + row * added_stride + column : 0;
            float *to = out + row * out_stride + column;
            if (width == 3) tile(3, activation, a + row, depth, b + column, b_stride, bias + row, plus, added_stride, to, out_stride);
            else if (width == 2) tile(2, activation, a + row, depth, b + column, b_stride, bias + row, plus, added_stride, to, out_stride);
            else tile(1, activation, a + row, depth, b + column, b_stride, bias + row, plus, added_stride, to, out_stride);
        }
    }
}

static void panel(int activation, const float *a, int depth, const float *b, int64_t b_stride, int n, const float *bias,
                  const float *added, int64_t added_stride, float *out, int64_t out_stride) {
    if (activation == IDENTITY) panel_as(IDENTITY, a, depth, b, b_stride, n, bias, added, added_stride, out, out_stride);
    else if (activation == RELU) panel_as(RELU, a, depth, b, b_stride, n, bias, added, added_stride, out, out_stride);
    else if (activation == HARDSWISH) panel_as(HARDSWISH, a, depth, b, b_stride, n, bias, added, added_stride, out, out_stride);
    else panel_as(SIGMOID, a, depth, b, b_stride, n, bias, added, added_stride, out, out_stride);
}

/* The sum of K kernels of n values, `step` values apart; a single kernel is returned as it is. */
static const float *mix(const float *kernels, int n_kernels, int64_t step, int n, const float *attention, float *mixed) {
    if (n_kernels == 1) return kernels;
    int i = 0;
    if (n_kernels == 4) {
        vec w0 = splat(attention[0]), w1 = splat(attention[1]), w2 = splat(attention[2]), w3 = splat(attention[3]);
        for (; i < n; i += LANES) {
            const float *p = kernels + i;
            store(mixed + i, w0 * load(p) + w1 * load(p + step) + w2 * load(p + 2 * step) + w3 * load(p + 3 * step));
        }
        return mixed;
    }
    for (; i < n; i += LANES) {
        vec sum = splat(0);
        for (int k = 0; k < n_kernels; k++) sum += attention[k] * load(kernels + k * step + i);
        store(mixed + i, sum);
    }
    return mixed;
}

/* ---- the parts of a block ---- */

typedef struct {
    int n_bands, n_frames, stride; /* of a feature map */
} Shape;

static Shape shape_of(int n_bands, int n_frames) {
    Shape shape = {n_bands, n_frames, map_stride(n_bands * n_frames)};
    return shape;
}

static Shape strided(Shape in, int stride, int time_stride) {
    return shape_of((in.n_bands + stride - 1) / stride, (in.n_frames + time_stride - 1) / time_stride);
}

typedef struct {
    float *x, *y, *filtered;                         /* block input and output, depthwise output */
    float *sequence, *context, *vector, *coefficient; /* of the context: [c_in][L], [H][L], [H], [n] */
    float *pooled, *frequency_gate, *time_gate;      /* [H][L], [c_exp][F'], [c_exp][T'] */
    float *excitation;                               /* [c_exp] */
    float **scratch;                                 /* of each thread */
    int64_t size;                                    /* of all of it, in floats */
} Workspace;

/* Whether the last vector of a band ends behind the last of a thread's bands, where another thread writes. */
static int runs_over(Shape out, int band, int last) {
    return last < out.n_bands && (last - band) * out.n_frames < round_up(out.n_frames, LANES);
}

/* Means over time and over frequency of channels first to last: [C][F + T]. */
static void pool(const float *x, Shape in, int first, int last, float *sequence, int64_t stride) {
    int whole = in.n_frames / LANES * LANES;
    ivec tail = lanes_below(in.n_frames - whole);
    for (int c = first; c < last; c++) {
        const float *map = x + (int64_t)c * in.stride;
        float *bands = sequence + c * stride, *frames = bands + in.n_bands;
        for (int t = 0; t < in.n_frames; t += LANES) store(frames + t, splat(0));
        for (int f = 0; f < in.n_bands; f++) {
            const float *row = map + (int64_t)f * in.n_frames;
            vec sum = splat(0);
            for (int t = 0; t < whole; t += LANES) {
                vec value = load(row + t);
                sum += value;
                store(frames + t, load(frames + t) + value);
            }
            if (whole < in.n_frames) {
                vec value = masked(load(row + whole), tail);
                sum += value;
                store(frames + whole, load(frames + whole) + value);
            }
            bands[f] = total(sum) / in.n_frames;
        }
        float share = 1.0f / in.n_bands;
        for (int t = 0; t < in.n_frames; t += LANES) store(frames + t, load(frames + t) * share);
    }
}

/* Average a sequence [n] over three with stride two, zeros beyond its ends. */
static void halve(const float *in, int n, float *out) {
    for (int i = 0; i < (n + 1) / 2; i++) {
        float sum = in[2 * i];
        if (i > 0) sum += in[2 * i - 1];
        if (2 * i + 1 < n) sum += in[2 * i + 1];
        out[i] = sum * (1.0f / 3.0f);
    }
}

/* Context, coefficients and gates of a block (eqs. 2, 3, 5-7), into the workspace. */
static void summarise(const Block *b, const float *x, Shape in, Shape out, Workspace *w, Team *team, int rank) {
    int length = in.n_bands + in.n_frames, size = team->size, h = b->context_size;
    int stride = round_up(length, 16) + SLACK;
    pool(x, in, first_of(b->c_in, rank, size), first_of(b->c_in, rank + 1, size), w->sequence, stride);
    meet(team);
    int panels = h / PANEL;
    for (int p = first_of(panels, rank, size); p < first_of(panels, rank + 1, size); p++) {
        float *rows = w->context + (int64_t)p * PANEL * stride;
        panel(HARDSWISH, b->context_weight + (int64_t)p * PANEL * b->c_in, b->c_in, w->sequence, stride, length,
              b->context_bias + p * PANEL, 0, 0, rows, stride);
        for (int i = 0; i < PANEL; i++) {
            const float *row = rows + (int64_t)i * stride;
            vec sum = splat(0);
            for (int j = 0; j < length; j += LANES) sum += masked(load(row + j), lanes_below(length - j));
            w->vector[p * PANEL + i] = total(sum) / length;
            if (b->coordinate_attention && b->stride == 2) {
                float *pooled = w->pooled + (int64_t)(p * PANEL + i) * stride;
                halve(row, in.n_bands, pooled);
                halve(row + in.n_bands, in.n_frames, pooled + out.n_bands);
            }
        }
    }
    meet(team);
    int n = b->n_expand * (b->n_expand > 1) + b->n_depthwise * (b->n_depthwise > 1) + b->n_project * (b->n_project > 1);
    n += b->dynamic_relu * 4 * b->c_exp;
    int columns = round_up(n, LANES) / LANES;
    for (int c = first_of(columns, rank, size) * LANES; c < first_of(columns, rank + 1, size) * LANES; c += LANES) {
        vec sum = load(b->coefficient_bias + c);
        for (int i = 0; i < h; i++) sum += w->vector[i] * load(b->coefficient_weight + (int64_t)i * round_up(n, 16) + c);
        store(w->coefficient + c, sum);
    }
    if (b->coordinate_attention) {
        const float *gates = b->stride == 2 ? w->pooled : w->context;
        int f_stride = round_up(out.n_bands, 16) + SLACK, t_stride = round_up(out.n_frames, 16) + SLACK;
        panels = b->c_exp / PANEL;
        for (int p = first_of(panels, rank, size); p < first_of(panels, rank + 1, size); p++) {
            int64_t weights = (int64_t)p * PANEL * h, channel = p * PANEL;
            panel(SIGMOID, b->frequency_weight + weights, h, gates, stride, out.n_bands, b->frequency_bias + channel, 0, 0,
                  w->frequency_gate + channel * f_stride, f_stride);
            panel(SIGMOID, b->time_weight + weights, h, gates + out.n_bands, stride, out.n_frames, b->time_bias + channel, 0, 0,
                  w->time_gate + channel * t_stride, t_stride);
        }
    }
    meet(team);
}

/* Softmax of n logits at p; returns where the next ones are. */
static const float *softmax(const float *p, int n, float *attention) {
    if (n == 1) {
        attention[0] = 1.0f;
        return p;
    }
    float highest = p[0], sum = 0;
    for (int i = 1; i < n; i++) highest = p[i] > highest ? p[i] : highest;
    for (int i = 0; i < n; i++) sum += attention[i] = exponential(splat(p[i] - highest))[0];
    for (int i = 0; i < n; i++) attention[i] /= sum;
    return p + n;
}

/* How one channel's filtered values become the depthwise output. */
typedef struct {
    int activation, dynamic;
    float slope[2], intercept[2], bias;
    const float *frequency, *time; /* gates of the channel, or 0 */
} Finish;

INLINE void filter_row_as(int k, int stride, int dynamic, int gated, const float *const *rows, int64_t odd, const float *weight,
                          const Finish *finish, int band, int n, float *out) {
    float gate = gated ? finish->frequency[band] : 1.0f; /* positive, so it may go into the maps of the Dy-ReLU */
    vec a0 = splat(finish->slope[0] * gate), a1 = splat(finish->slope[1] * gate);
    vec b0 = splat((finish->slope[0] * finish->bias + finish->intercept[0]) * gate);
    vec b1 = splat((finish->slope[1] * finish->bias + finish->intercept[1]) * gate);
    for (int t = 0; t < n; t += LANES) {
        vec sum = splat(0), other = splat(0);
        UNROLL
        for (int i = 0; i < k; i++)
            UNROLL
            for (int j = 0; j < k; j++) {
                const float *place = stride == 1 ? rows[i] + t + j : rows[i] + t + (j & 1 ? odd + j / 2 : j / 2);
                if (j & 1) other += weight[i * k + j] * load(place);
                else sum += weight[i * k + j] * load(place);
            }
        sum += other;
        vec value;
        if (dynamic) value = maximum(a0 * sum + b0, a1 * sum + b1);
        else value = activate(sum + finish->bias, finish->activation) * gate;
        if (gated) value *= load(finish->time + t);
        store(out + t, value);
    }
}

INLINE void filter_row_sized(int k, int stride, const float *const *rows, int64_t odd, const float *weight, const Finish *finish, int band,
                             int n, float *out) {
    if (finish->dynamic && finish->time) filter_row_as(k, stride, 1, 1, rows, odd, weight, finish, band, n, out);
    else if (finish->dynamic) filter_row_as(k, stride, 1, 0, rows, odd, weight, finish, band, n, out);
    else if (finish->time) filter_row_as(k, stride, 0, 1, rows, odd, weight, finish, band, n, out);
    else filter_row_as(k, stride, 0, 0, rows, odd, weight, finish, band, n, out);
}

static void filter_row(int k, int stride, const float *const *rows, int64_t odd, const float *weight, const Finish *finish, int band,
                       int n, float *out) {
    if (k == 3 && stride == 1) filter_row_sized(3, 1, rows, odd, weight, finish, band, n, out);
    else if (k == 3) filter_row_sized(3, 2, rows, odd, weight, finish, band, n, out);
    else if (stride == 1) filter_row_sized(5, 1, rows, odd, weight, finish, band, n, out);
    else filter_row_sized(5, 2, rows, odd, weight, finish, band, n, out);
}

/* Floats of a ring row: a frame row with the kernel's margin on both sides. */
static int ring_row(Shape in, int kernel_size) { return round_up(in.n_frames + kernel_size, 16) + SLACK; }

static int64_t ring_size(const Block *b, Shape in) {
    return (int64_t)ring_row(in, b->kernel_size) * (PANEL * b->kernel_size + PANEL + 2) /* the ring, a row as it comes, zeros, a spare row */
           + PANEL * (b->c_in + b->kernel_size * b->kernel_size) + 2 * SLACK;
}

/* Expand eight channels from `channel` on and filter them, bands first to last of the output. */
static void expand_and_filter(const Block *b, const float *x, Shape in, Shape out, int channel, int first, int last,
                              const float *const *attention, const Workspace *w, float *scratch) {
    int k = b->kernel_size, margin = k / 2, taps = k * k, row = ring_row(in, k);
    float *ring = scratch, *whole = ring + (int64_t)row * PANEL * k, *zeros = whole + (int64_t)row * PANEL;
    float *spare = zeros + row, *kernel = spare + row, *expand = kernel + PANEL * taps + SLACK;
    int64_t odd = row / 2;
    memset(zeros, 0, sizeof(float) * (size_t)row);
    for (int i = 0; i < PANEL * (k + 1); i++) memset(ring + (int64_t)i * row, 0, sizeof(float) * (size_t)margin); /* of the row as it comes too */

    const float *weights = mix(b->depthwise_weight + (int64_t)channel * taps, b->n_depthwise, (int64_t)b->c_exp * taps, PANEL * taps,
                               attention[1], kernel);
    const float *expansion = 0;
    if (b->n_expand)
        expansion = mix(b->expand_weight + (int64_t)channel * b->c_in, b->n_expand, (int64_t)b->c_exp * b->c_in, PANEL * b->c_in,
                        attention[0], expand);
    Finish finish[PANEL];
    int f_stride = round_up(out.n_bands, 16) + SLACK, t_stride = round_up(out.n_frames, 16) + SLACK;
    for (int i = 0; i < PANEL; i++) {
        int c = channel + i;
        Finish *f = &finish[i];
        f->activation = b->activation;
        f->dynamic = b->dynamic_relu;
        f->bias = b->depthwise_bias[c];
        f->frequency = b->coordinate_attention ? w->frequency_gate + (int64_t)c * f_stride : 0;
        f->time = b->coordinate_attention ? w->time_gate + (int64_t)c * t_stride : 0;
        for (int m = 0; m < 2; m++) { /* 2 sigmoid - 1, so that slopes lie in (0, 2) and (-1, 1), intercepts in (-0.5, 0.5) */
            f->slope[m] = b->dynamic_relu ? 2.0f * sigmoid(splat(attention[3][m * b->c_exp + c]))[0] - (m == 0 ? 0.0f : 1.0f) : 0;
            f->intercept[m] = b->dynamic_relu ? sigmoid(splat(attention[3][(2 + m) * b->c_exp + c]))[0] - 0.5f : 0;
        }
    }

    int next = larger(0, first * b->stride - margin); /* the next row to expand */
    for (int band = first; band < last; band++) {
        int top = band * b->stride - margin;
        BEGIN(IN_EXPAND);
        for (; next < smaller(in.n_bands, top + k); next++) {
            const float *from = x + (int64_t)next * in.n_frames;
            float *slot = ring + (int64_t)(next % k) * PANEL * row;
            float *to = b->time_stride == 1 ? slot : whole;
            if (expansion)
                panel(b->activation, expansion, b->c_in, from, in.stride, in.n_frames, b->expand_bias + channel, 0, 0, to + margin, row);
            else
                for (int i = 0; i < PANEL; i++)
                    memcpy(to + (int64_t)i * row + margin, from + (int64_t)(channel + i) * in.stride, sizeof(float) * (size_t)in.n_frames);
            for (int i = 0; i < PANEL; i++) {
                float *end = to + (int64_t)i * row + margin + in.n_frames;
                memset(end, 0, sizeof(float) * (size_t)(to + (int64_t)(i + 1) * row - end));
                if (b->time_stride == 2) part_row(to + (int64_t)i * row, out.n_frames + margin, slot + (int64_t)i * row, slot + (int64_t)i * row + odd);
            }
        }
        END(IN_EXPAND);
        BEGIN(IN_FILTER);
        for (int i = 0; i < PANEL; i++) {
            const float *rows[5];
            for (int r = 0; r < k; r++) {
                int band_in = top + r;
                rows[r] = band_in < 0 || band_in >= in.n_bands ? zeros : ring + ((int64_t)(band_in % k) * PANEL + i) * row;
            }
            float *to = w->filtered + (int64_t)(channel + i) * out.stride + (int64_t)band * out.n_frames;
            int is_seam = runs_over(out, band, last);
            filter_row(k, b->time_stride, rows, odd, weights + i * taps, &finish[i], band, out.n_frames, is_seam ? spare : to);
            if (is_seam) memcpy(to, spare, sizeof(float) * (size_t)out.n_frames);
        }
        END(IN_FILTER);
    }
}

/* Squeeze-and-Excitation: the weight of each channel of the depthwise output. */
static void excite(const Block *b, Shape out, Workspace *w, Team *team, int rank) {
    int n = out.n_bands * out.n_frames, whole = n / LANES * LANES, size = team->size;
    float *mean = w->coefficient, *hidden = w->vector;
    for (int c = first_of(b->c_exp, rank, size); c < first_of(b->c_exp, rank + 1, size); c++) {
        const float *map = w->filtered + (int64_t)c * out.stride;
        vec sum = splat(0);
        for (int i = 0; i < whole; i += LANES) sum += load(map + i);
        sum += masked(load(map + whole), lanes_below(n - whole));
        mean[c] = total(sum) / n;
    }
    meet(team);
    if (rank == 0) {
        for (int s = 0; s < b->squeeze_size; s++) {
            vec sum = splat(0);
            for (int c = 0; c < b->c_exp; c += LANES)
                sum += masked(load(mean + c) * load(b->squeeze_weight + (int64_t)s * b->c_exp + c), lanes_below(b->c_exp - c));
            float value = total(sum) + b->squeeze_bias[s];
            hidden[s] = value > 0 ? value : 0;
        }
        for (int c = 0; c < b->c_exp; c += LANES) {
            vec sum = load(b->excite_bias + c);
            for (int s = 0; s < b->squeeze_size; s++) sum += hidden[s] * load(b->excite_weight + (int64_t)s * b->c_exp + c);
            store(w->excitation + c, sigmoid(sum));
        }
    }
    meet(team);
}

/* One project panel for places first to last. */
static void project(const Block *b, const float *x, Shape out, int p, int first, int last, const float *attention, const Workspace *w,
                    float *scratch) {
    int n = PANEL * b->c_exp;
    const float *kernel = mix(b->project_weight + (int64_t)p * n, b->n_project, (int64_t)b->c_out * b->c_exp, n, attention, scratch);
    if (b->squeeze_size) {
        for (int c = 0; c < b->c_exp; c++)
            for (int i = 0; i < PANEL; i++) scratch[c * PANEL + i] = kernel[c * PANEL + i] * w->excitation[c];
        kernel = scratch;
    }
    int64_t place = (int64_t)p * PANEL * out.stride + first;
    panel(IDENTITY, kernel, b->c_exp, w->filtered + first, out.stride, last - first, b->project_bias + p * PANEL,
          b->has_residual ? x + place : 0, out.stride, w->y + place, out.stride);
}

/* How many pieces to cut each of n panels into, so that a team has enough to share. */
static int pieces(int n, int size) { return size == 1 ? 1 : larger(1, 4 * size / n); }

static Shape run_block(const Block *b, Shape in, Workspace *w, Team *team, int rank) {
    Shape out = strided(in, b->stride, b->time_stride);
    float *scratch = w->scratch[rank];
    float attention[3][LONGEST_ATTENTION];
    const float *coefficients[4] = {attention[0], attention[1], attention[2], 0};
    BEGIN(IN_CONTEXT);
    if (b->context_size) summarise(b, w->x, in, out, w, team, rank);
    END(IN_CONTEXT);
    const float *next = w->coefficient;
    next = softmax(next, larger(1, b->n_expand), attention[0]);
    next = softmax(next, b->n_depthwise, attention[1]);
    next = softmax(next, b->n_project, attention[2]);
    coefficients[3] = next;

    int panels = b->c_exp / PANEL, cut = smaller(out.n_bands, pieces(panels, team->size));
    for (int i = first_of(panels * cut, rank, team->size); i < first_of(panels * cut, rank + 1, team->size); i++)
        expand_and_filter(b, w->x, in, out, i / cut * PANEL, first_of(out.n_bands, i % cut, cut), first_of(out.n_bands, i % cut + 1, cut),
                          coefficients, w, scratch);
    meet(team);
    if (b->squeeze_size) excite(b, out, w, team, rank);

    BEGIN(IN_PROJECT);
    int n = out.n_bands * out.n_frames, tiles = (n + COLUMNS * LANES - 1) / (COLUMNS * LANES);
    panels = b->c_out / PANEL;
    cut = smaller(tiles, pieces(panels, team->size));
    for (int i = first_of(panels * cut, rank, team->size); i < first_of(panels * cut, rank + 1, team->size); i++) {
        int first = first_of(tiles, i % cut, cut) * COLUMNS * LANES, last = first_of(tiles, i % cut + 1, cut) * COLUMNS * LANES;
        project(b, w->x, out, i / cut, first, smaller(n, last), attention[2], w, scratch);
    }
    meet(team);
    END(IN_PROJECT);
    return out;
}

/* ---- the network ---- */

/* Static 3x3 convolution of stride 2 on one channel, hard swish. */
static void stem(const Network *net, const float *log_mel, int n_bands, int n_frames, Shape out, Workspace *w, Team *team, int rank) {
    int row = round_up(n_frames + 3, 16) + SLACK;
    int64_t odd = row / 2;
    float *parted = w->scratch[rank], *whole = parted + 3 * row;
    Finish finish = {.activation = HARDSWISH};
    int last = first_of(out.n_bands, rank + 1, team->size);
    for (int band = first_of(out.n_bands, rank, team->size); band < last; band++) {
        const float *rows[3];
        for (int r = 0; r < 3; r++) {
            int band_in = 2 * band - 1 + r;
            memset(whole, 0, sizeof(float) * (size_t)row);
            if (band_in >= 0 && band_in < n_bands) memcpy(whole + 1, log_mel + (int64_t)band_in * n_frames, sizeof(float) * (size_t)n_frames);
            part_row(whole, out.n_frames + 1, parted + r * row, parted + r * row + odd);
            rows[r] = parted + r * row;
        }
        for (int c = 0; c < net->c_stem; c++) {
            finish.bias = net->stem_bias[c];
            float *to = w->x + (int64_t)c * out.stride + (int64_t)band * out.n_frames;
            int is_seam = runs_over(out, band, last);
            filter_row(3, 2, rows, odd, net->stem_weight + 9 * c, &finish, band, out.n_frames, is_seam ? whole : to);
            if (is_seam) memcpy(to, whole, sizeof(float) * (size_t)out.n_frames);
        }
    }
    meet(team);
}

/* The last convolution and its mean over all places, the embedding; and its means over the bands of each frame, [c_last][T], unless
 * `frames` is 0.
 */
static void embed(const Network *net, int c_in, Shape in, Workspace *w, Team *team, int rank, float *embedding, float *frames) {
    int n = in.n_bands * in.n_frames, panels = net->c_last / PANEL;
    float *rows = w->scratch[rank];
    for (int p = first_of(panels, rank, team->size); p < first_of(panels, rank + 1, team->size); p++) {
        vec sums[PANEL] = {0};
        float *means = frames ? frames + (int64_t)p * PANEL * in.n_frames : 0;
        if (means) memset(means, 0, sizeof(float) * PANEL * (size_t)in.n_frames);
        for (int column = 0; column < n; column += COLUMNS * LANES) {
            int width = smaller(COLUMNS * LANES, n - column);
            panel(HARDSWISH, net->last_weight + (int64_t)p * PANEL * c_in, c_in, w->x + column, in.stride, width, net->last_bias + p * PANEL,
                  0, 0, rows, COLUMNS * LANES);
            for (int i = 0; i < PANEL; i++)
                for (int j = 0; j < width; j += LANES)
                    sums[i] += masked(load(rows + i * COLUMNS * LANES + j), lanes_below(width - j));
            for (int i = 0; means && i < PANEL; i++)
                for (int j = 0, t = column % in.n_frames; j < width; j++, t = t + 1 == in.n_frames ? 0 : t + 1)
                    means[(int64_t)i * in.n_frames + t] += rows[i * COLUMNS * LANES + j];
        }
        for (int i = 0; i < PANEL; i++) embedding[p * PANEL + i] = total(sums[i]) / n;
        for (int64_t i = 0; means && i < (int64_t)PANEL * in.n_frames; i++) means[i] /= in.n_bands;
    }
    meet(team);
}

/* Copy this thread's share of the channels of a map, without the room behind them, to `to`. */
static void copy_map(const float *x, int n_channels, Shape shape, Team *team, int rank, float *to) {
    int n = shape.n_bands * shape.n_frames;
    for (int c = first_of(n_channels, rank, team->size); c < first_of(n_channels, rank + 1, team->size); c++)
        memcpy(to + (int64_t)c * n, x + (int64_t)c * shape.stride, sizeof(float) * (size_t)n);
}

/* maps[i] is where the outputs of block i go, [n_clips][c_out][F'][T'], or 0; `clip` is the index of this clip. */
static void run_clip(const Network *net, const float *log_mel, int n_bands, int n_frames, Workspace *w, Team *team, int rank,
                     float *embedding, float *frames, float *const *maps, int64_t clip) {
    Shape shape = strided(shape_of(n_bands, n_frames), 2, 2);
    Workspace mine = *w; /* so that each thread swaps the maps for itself */
    BEGIN(IN_STEM);
    stem(net, log_mel, n_bands, n_frames, shape, &mine, team, rank);
    END(IN_STEM);
    for (int i = 0; i < net->n_blocks; i++) {
        shape = run_block(&net->blocks[i], shape, &mine, team, rank);
        float *x = mine.x;
        mine.x = mine.y;
        mine.y = x;
        if (maps && maps[i]) {
            int c_out = net->blocks[i].c_out;
            copy_map(mine.x, c_out, shape, team, rank, maps[i] + clip * c_out * shape.n_bands * shape.n_frames);
        }
    }
    BEGIN(IN_LAST);
    embed(net, net->blocks[net->n_blocks - 1].c_out, shape, &mine, team, rank, embedding, frames);
    END(IN_LAST);
}

static float *take(float *base, int64_t *used, int64_t n) {
    float *taken = base ? base + *used : 0;
    *used += (n + SLACK + 15) / 16 * 16;
    return taken;
}

/* Lay out the memory of a team of `size` threads from `base` on; with `base` 0, only its size is found. */
static Workspace lay_out(const Network *net, int n_bands, int n_frames, int size, float *base, float **scratch) {
    Shape shape = strided(shape_of(n_bands, n_frames), 2, 2);
    int64_t map = (int64_t)net->c_stem * shape.stride, filtered = 0, sequence = 0, context = 0, coefficient = 0, gate_f = 0, gate_t = 0;
    int64_t own = 4 * (int64_t)(round_up(n_frames + 3, 16) + SLACK), channels = 0, vector = 0;
    for (int i = 0; i < net->n_blocks; i++) {
        const Block *b = &net->blocks[i];
        Shape out = strided(shape, b->stride, b->time_stride);
        int64_t length = round_up(shape.n_bands + shape.n_frames, 16) + SLACK;
#define AT_LEAST(name, value) name = (value) > name ? (value) : name
        AT_LEAST(map, (int64_t)b->c_out * out.stride);
        AT_LEAST(filtered, (int64_t)b->c_exp * out.stride);
        AT_LEAST(sequence, b->c_in * length);
        AT_LEAST(context, b->context_size * length);
        AT_LEAST(coefficient, 4 * b->c_exp + 3 * LONGEST_ATTENTION);
        AT_LEAST(gate_f, (int64_t)b->c_exp * (round_up(out.n_bands, 16) + SLACK));
        AT_LEAST(gate_t, (int64_t)b->c_exp * (round_up(out.n_frames, 16) + SLACK));
        AT_LEAST(channels, b->c_exp);
        AT_LEAST(vector, larger(b->context_size, b->squeeze_size));
        AT_LEAST(own, ring_size(b, shape));
        AT_LEAST(own, PANEL * (int64_t)b->c_exp);
#undef AT_LEAST
        shape = out;
    }
    int64_t used = 0;
    Workspace w;
    w.x = take(base, &used, map);
    w.y = take(base, &used, map);
    w.filtered = take(base, &used, filtered);
    w.sequence = take(base, &used, sequence);
    w.context = take(base, &used, context);
    w.pooled = take(base, &used, context);
    w.coefficient = take(base, &used, coefficient);
    w.frequency_gate = take(base, &used, gate_f);
    w.time_gate = take(base, &used, gate_t);
    w.vector = take(base, &used, vector);
    w.excitation = take(base, &used, channels);
    w.scratch = scratch;
    for (int i = 0; i < size; i++) {
        float *own_part = take(base, &used, own);
        if (scratch) scratch[i] = own_part;
    }
    w.size = used;
    return w;
}

typedef struct {
    const Network *net;
    const float *log_mel;
    float *embedding, *frames, *const *maps;
    int64_t frames_size; /* of a clip */
    int n_clips, n_bands, n_frames, rank;
    Workspace workspace;
    Team *team;     /* works on one clip after the other, or has one member, */
    int *next_clip; /* which takes the clips that the others do not */
} Job;

static void work(Job *job) {
    Team *team = job->team;
    int64_t clip = (int64_t)job->n_bands * job->n_frames;
    for (int spins = 0; !__atomic_load_n(&team->size, __ATOMIC_ACQUIRE); spins += spins < 2000) pause_thread(spins);
    for (int i = 0;; i++) {
        if (job->next_clip) i = __atomic_fetch_add(job->next_clip, 1, __ATOMIC_RELAXED);
        if (i >= job->n_clips) return;
        run_clip(job->net, job->log_mel + i * clip, job->n_bands, job->n_frames, &job->workspace, team, job->rank,
                 job->embedding + (int64_t)i * job->net->c_last, job->frames ? job->frames + i * job->frames_size : 0, job->maps, i);
    }
}

ENTRY(enter, job) {
    work(job);
    return 0;
}

#if defined(__AVX2__)
/* Whether the CPU has FMA and these bits of CPUID 7, and the system saves these registers. Asked here and not of
 * __builtin_cpu_supports, which always says no where Zig links. */
static int cpu_supports(uint32_t features, uint32_t registers) {
    uint32_t a, b, c, d, saved, above;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_FMA)) return 0;
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(above) : "c"(0));
    if ((saved & registers) != registers) return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & features) == features;
}
#endif

/* Whether this build's instructions are those of this CPU. */
EXPORT int32_t dymn_supported(void) {
#if defined(__AVX512F__)
    return cpu_supports(bit_AVX2 | bit_BMI2 | bit_AVX512F | bit_AVX512VL | bit_AVX512BW | bit_AVX512DQ | bit_AVX512CD, 0xe6);
#elif defined(__AVX2__)
    return cpu_supports(bit_AVX2 | bit_BMI2, 0x06);
#else
    return 1;
#endif
}

/* The version of the structures that are shared with Python. */
EXPORT int32_t dymn_layout(void) { return 7; }

/* How many floats of memory a call needs. */
EXPORT int64_t dymn_workspace(const Network *net, int32_t n_clips, int32_t n_bands, int32_t n_frames, int32_t n_threads) {
    n_threads = smaller(n_threads, MOST_THREADS);
    if (n_clips < n_threads) return lay_out(net, n_bands, n_frames, n_threads, 0, 0).size;
    return n_threads * lay_out(net, n_bands, n_frames, 1, 0, 0).size;
}

/* Embeddings [n_clips][c_last] of log-mel spectrograms [n_clips][n_bands][n_frames]; unless `frames` is 0, also the last feature map
 * averaged over its bands, [n_clips][c_last][T'] with T' as many frames as the strides leave. Unless `maps` is 0, it has a pointer
 * for each block, to where its output [n_clips][c_out][F'][T'] goes, or 0.
 */
EXPORT void dymn_run(const Network *net, const float *log_mel, int32_t n_clips, int32_t n_bands, int32_t n_frames, int32_t n_threads,
                     float *workspace, float *embedding, float *frames, float *const *maps) {
    n_threads = smaller(n_threads, MOST_THREADS);
    int together = n_clips < n_threads, next_clip = 0, started = 1;
    Team team = {0}, alone = {.size = 1};
    float *scratch[MOST_THREADS];
    Thread threads[MOST_THREADS];
    Job jobs[MOST_THREADS];
    Shape last = strided(shape_of(n_bands, n_frames), 2, 2);
    for (int i = 0; i < net->n_blocks; i++) last = strided(last, net->blocks[i].stride, net->blocks[i].time_stride);
    int64_t frames_size = (int64_t)net->c_last * last.n_frames;
    Workspace shared = lay_out(net, n_bands, n_frames, together ? n_threads : 1, workspace, scratch);
    for (int i = 0; i < n_threads; i++) {
        Workspace w = together ? shared : lay_out(net, n_bands, n_frames, 1, workspace + i * shared.size, &scratch[i]);
        Job job = {net, log_mel, embedding, frames, maps, frames_size, n_clips, n_bands, n_frames, together ? i : 0, w, together ? &team : &alone, together ? 0 : &next_clip};
        jobs[i] = job;
    }
    while (started < n_threads && start_thread(&threads[started], enter, &jobs[started])) started++; /* fewer threads do the same work */
    __atomic_store_n(&team.size, started, __ATOMIC_RELEASE);
    work(&jobs[0]);
    for (int i = 1; i < started; i++) join_thread(threads[i]);
}

typedef struct {
    const float *x, *weight, *bias;
    float *out;
    int n_rows, n_in, width, activation;
} Affine;

/* As many groups of n rows as lie between `row` and `end`, through `panels` panels of weights [n_in][16] from output c on; returns the
 * row behind them.
 */
INLINE int affine_groups(int n, int panels, const Affine *a, int c, int row, int end) {
    enum { VECTORS = 16 / LANES };
    const float *weight = a->weight + (int64_t)c * a->n_in;
    for (; row + n <= end; row += n) {
        const float *x = a->x + (int64_t)row * a->n_in;
        float *out = a->out + (int64_t)row * a->width + c;
        vec sums[8][4 * VECTORS];
        UNROLL
        for (int r = 0; r < n; r++)
            UNROLL
            for (int v = 0; v < panels * VECTORS; v++) sums[r][v] = load(a->bias + c + v * LANES);
        for (int i = 0; i < a->n_in; i++)
            UNROLL
            for (int v = 0; v < panels * VECTORS; v++) {
                vec factors = load(weight + (int64_t)(v / VECTORS) * 16 * a->n_in + 16 * i + v % VECTORS * LANES);
                UNROLL
                for (int r = 0; r < n; r++) sums[r][v] += x[(int64_t)r * a->n_in + i] * factors;
            }
        UNROLL
        for (int r = 0; r < n; r++)
            UNROLL
            for (int v = 0; v < panels * VECTORS; v++) store(out + (int64_t)r * a->width + v * LANES, activate(sums[r][v], a->activation));
    }
    return row;
}

#define AFFINE_ROWS (LANES == 16 ? 8 : 4) /* rows at a time: as many sums as there are registers for */

/* Groups of rows first to last. Single rows take four panels at once, so that no sum waits for the one before. */
static void affine_rows(const void *work, int first, int last, int share) {
    const Affine *a = work;
    int end = smaller(a->n_rows, last * AFFINE_ROWS), single = 0, c = 0;
    (void)share;
    for (; c < a->width; c += 16) {
        single = affine_groups(AFFINE_ROWS, 1, a, c, first * AFFINE_ROWS, end);
        if (AFFINE_ROWS > 4) single = affine_groups(4, 1, a, c, single, end);
    }
    for (c = 0; c + 64 <= a->width; c += 64) affine_groups(1, 4, a, c, single, end);
    for (; c < a->width; c += 16) affine_groups(1, 1, a, c, single, end);
}

/* A linear layer and its activation: rows [n_rows][n_in] to [n_rows][round_up(n_out, 16)], for weights [n_out / 16][n_in][16]. Each row's
 * numbers are the same whatever rows there are beside it, and whatever the number of threads.
 */
EXPORT void dymn_affine(const float *x, const float *weight, const float *bias, int32_t n_rows, int32_t n_in, int32_t n_out,
                        int32_t activation, int32_t n_threads, float *out) {
    Affine work = {x, weight, bias, out, n_rows, n_in, round_up(n_out, 16), activation};
    for_maps(affine_rows, &work, (n_rows + AFFINE_ROWS - 1) / AFFINE_ROWS, n_threads);
}
