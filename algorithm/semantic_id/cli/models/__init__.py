"""模型的命令，一个命令一个文件：train、info、tokens、advise、demo。"""
