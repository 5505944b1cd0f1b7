"""质量对照的各间房：data 数据与划分，tools 各家的做法，row 一格的训练，columns 指标，report 写表。"""
