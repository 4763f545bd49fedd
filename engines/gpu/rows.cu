// Rows of the state tables to a batch and back, for every tensor of a graph in one launch.
//
// Grid: x = shares of a row, y = rows of the batch, z = tensors. A slot below zero marks a row that
// only fills the batch up: it reads row ~slot and is written nowhere. Compiled to rows.ptx (see
// engines/gpu/rows.py), so a line needs no compiler.

struct Rows {
    unsigned char* table;        // capacity rows, row_bytes apart
    unsigned char* batch;        // rows of the largest bucket, pitch_bytes apart
    unsigned long long row_bytes;
    unsigned long long pitch_bytes;
};

__device__ void copy_row(const unsigned char* source, unsigned char* target,
                         unsigned long long size)
{
    const unsigned long long lane = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x;
    const unsigned long long lanes = gridDim.x * (unsigned long long)blockDim.x;
    unsigned long long vectors = 0;
    if ((((unsigned long long)source | (unsigned long long)target) & 15) == 0) {
        vectors = size / 16;
        for (unsigned long long i = lane; i < vectors; i += lanes)
            ((uint4*)target)[i] = ((const uint4*)source)[i];
    }
    for (unsigned long long i = vectors * 16 + lane; i < size; i += lanes)
        target[i] = source[i];
}

extern "C" __global__ void gather_rows(const Rows* tensors, const int* slots)
{
    const Rows rows = tensors[blockIdx.z];
    const int slot = slots[blockIdx.y];
    const unsigned long long row = slot < 0 ? ~slot : slot;
    copy_row(rows.table + row * rows.row_bytes, rows.batch + blockIdx.y * rows.pitch_bytes,
             rows.row_bytes);
}

extern "C" __global__ void scatter_rows(const Rows* tensors, const int* slots)
{
    const Rows rows = tensors[blockIdx.z];
    const int slot = slots[blockIdx.y];
    if (slot < 0)
        return;
    copy_row(rows.batch + blockIdx.y * rows.pitch_bytes,
             rows.table + (unsigned long long)slot * rows.row_bytes, rows.row_bytes);
}
